"""Provider `rehearsal`: Lambda's provider against the practice cloud on this computer."""
