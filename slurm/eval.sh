#!/bin/bash
#SBATCH --job-name=evaluate
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=2:00:00
#SBATCH --signal=USR2@90
#SBATCH --requeue
# Evaluate every trained run of a sweep under the conditions still missing, then report. From the project's root:
#
#     sbatch slurm/eval.sh [runs/NAME]                default: runs/all_groups
#     sbatch --array=0-7 slurm/eval.sh runs/NAME      eight jobs share the runs; the last one's report has them all
#
# sbatch's own options come before slurm/eval.sh: --gpus-per-node=1 where there are GPUs, --account, --partition,
# --mem. A job that nears its time limit or has to make way is put back into the queue and goes on where it was.
. slurm/env.sh || exit 2 # not found: sbatch was not called from the project's root
set -euo pipefail
sweep=${1:-runs/all_groups}

if [ ! -f "$sweep/plan.csv" ]; then
    echo "slurm/eval.sh: $sweep: no plan.csv there; give the directory of a launched sweep, runs/NAME" >&2
    exit 2
fi

first=${SLURM_ARRAY_TASK_MIN:-0} shares=${SLURM_ARRAY_TASK_COUNT:-1}
if ((${SLURM_ARRAY_TASK_MAX:-0} - first + 1 != shares)); then
    echo "slurm/eval.sh: --array with gaps would leave runs out; allowed: a range, such as 0-$((shares - 1))" >&2
    exit 2
fi
share=$((${SLURM_ARRAY_TASK_ID:-0} - first))/$shares

export SUBMITIT_EXECUTOR=slurm # tells the evaluation that it may have its job requeued
status=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" python -u -m jobs.evaluate "$sweep" --share "$share" || status=$?
((status != 75)) || exit $status # stopped by a signal: no time is left for a report
python -u -m galaxyhpc.aggregate "$sweep"
exit $status # 1: an evaluation failed; the report says which runs are missing
