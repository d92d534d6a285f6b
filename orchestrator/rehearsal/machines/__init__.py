"""The practice cloud's machines: real sshd in namespaces, with disk, memory and power of their own."""
