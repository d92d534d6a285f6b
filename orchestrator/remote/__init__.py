"""Ways to a machine: SSH or this one, bulk transfer, and the agent's client. Only ssh.py knows Fabric."""
