"""A shell on a machine, over SSH or here, and whose host key is trusted. Only ssh_shell knows Fabric."""
