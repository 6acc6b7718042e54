"""Files of runs and sweeps: atomic writes, run and sweep directories, events, checkpoints, provenance.

Knows the layout of the directories and whether a file is intact. What the numbers
mean is decided in `training`, `evaluation` and `analysis`.
"""
