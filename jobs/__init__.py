"""What Slurm calls: each job is given the path of a directory and nothing else."""
