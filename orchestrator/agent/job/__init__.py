"""One detached job: its process, its exit record, how it is stopped, and the watchdog over its steps."""
