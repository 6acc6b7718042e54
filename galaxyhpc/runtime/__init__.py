"""The process a job runs in: signals and requeueing, locks, ranks, torch.distributed, Slurm queries, seeds, C++ builds.

Knows nothing of galaxies or networks. Submitting jobs lives in `launch`.
"""
