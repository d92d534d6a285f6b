"""The agent: runs on the machine, outlives the laptop. Standard library only, Python >= 3.8, a program of its own.

It is packed into one zipapp (remote/agent_client/package.py) together with trainer/run_files.py and called as
`python3 agent-HASH.pyz VERB` with JSON on stdin and JSON lines on stdout (docs/reference/agent-protocol.md).
"""
