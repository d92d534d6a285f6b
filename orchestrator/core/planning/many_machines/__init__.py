"""What takes more than one machine or one run: nodes, attempts after a machine is taken away, the arms of a sweep."""
