"""Provider `ssh`: a machine of your own that SSH reaches."""
