"""What the operating system gives: paths, files, locks, processes, GPUs, and the lease's clock."""
