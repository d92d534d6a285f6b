"""Many runs of one question: sweeps, and their commands."""
