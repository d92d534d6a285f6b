"""Where data lies. One file per URI scheme; a scheme is its module's name."""
