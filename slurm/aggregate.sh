#!/bin/bash
#SBATCH --job-name=aggregate
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=1:00:00
# Write the report of a sweep from the results so far, without evaluating anything. From the project root:
#
#     sbatch slurm/aggregate.sh [runs/NAME]           default: runs/all_groups
ls slurm/env.sh >/dev/null || exit 2 # not found: call sbatch from the project root
. slurm/env.sh
exec python -u -m galaxyhpc aggregate "${1:-runs/all_groups}"
