"""The queue of a machine: trainings that wait for its GPUs, and the process that starts them one after the other."""
