"""galaxyhpc launch: from a sweep file to submitted jobs.

Holds the plan, preflight checks, dry run, and the Slurm and local executors. The work of a job lives in `jobs` and
`runtime`.
"""
