"""What the stages do with data: prepare text, send files, have the machine pull."""
