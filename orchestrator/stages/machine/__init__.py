"""What the stages do with the machine: boot, interpreter, host key, deadline, jobs."""
