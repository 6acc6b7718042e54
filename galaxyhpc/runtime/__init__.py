"""The process of a job: signals and requeueing, locks, ranks, torch.distributed, Slurm queries, seeds, C++ builds.

Knows nothing of galaxies or networks. Jobs are submitted by `launch`.
"""
