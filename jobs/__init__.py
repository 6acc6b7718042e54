"""The jobs that Slurm starts: each is given the path of a directory and nothing else."""
