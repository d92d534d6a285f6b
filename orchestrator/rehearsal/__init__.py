"""A cloud to rehearse on: it answers as the Lambda Cloud API does, boots real machines, keeps its own books and lies.

Imported by nobody, run as a program: `python -m orchestrator.rehearsal --state DIR`. Standard library only, Linux, and
it needs an sshd. `docs/rehearsal.md` says how to use it; read cloud.py first, then machines.py.
"""
