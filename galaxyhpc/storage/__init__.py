"""Files of runs and sweeps: atomic writes, run and sweep directories, events, checkpoints, provenance.

Knows what lies where and whether it is whole. What the numbers mean is decided
in `training`, `evaluation` and `analysis`.
"""
