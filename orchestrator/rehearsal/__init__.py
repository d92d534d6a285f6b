"""A practice cloud: answers like the Lambda Cloud API, boots real machines, keeps its own books, and lies on request.

Run it as a program: `python -m orchestrator.rehearsal --state DIR`; no module imports it. It uses only the standard
library and needs Linux and an sshd. Usage: `docs/guides/rehearsal.md`. Read cloud.py first, then machines/machine.py.
"""
