"""python -m galaxyhpc.launch: from a sweep file to submitted jobs.

Holds the plan, preflight checks, dry run, and the Slurm and local executors. What a job does lives in `jobs` and
`runtime`.
"""
