"""Provider `slurm`: a cluster whose login node SSH reaches; Slurm takes the jobs."""
