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
# Evaluate every trained run of a sweep under its missing conditions, then write the report. From the project root:
#
#     sbatch slurm/eval.sh [runs/NAME]                default: runs/all_groups
#     sbatch --array=0-7 slurm/eval.sh runs/NAME      eight jobs share the runs; the last report is complete
#
# Options of sbatch come before slurm/eval.sh: --gpus-per-node=1 on a GPU cluster, --account, --partition, --mem. A job
# that is near its time limit or is preempted is requeued and resumes.
ls slurm/env.sh >/dev/null || exit 2 # not found: call sbatch from the project root
. slurm/env.sh
set -euo pipefail
sweep=${1:-runs/all_groups}

if [ ! -f "$sweep/plan.csv" ]; then
    echo "slurm/eval.sh: $sweep: no plan.csv; expected the directory of a launched sweep, runs/NAME" >&2
    exit 2
fi

first=${SLURM_ARRAY_TASK_MIN:-0} shares=${SLURM_ARRAY_TASK_COUNT:-1}
if ((${SLURM_ARRAY_TASK_MAX:-0} - first + 1 != shares)); then
    echo "slurm/eval.sh: --array: got a list with gaps; expected a range, such as 0-$((shares - 1))" >&2
    exit 2
fi
share=$((${SLURM_ARRAY_TASK_ID:-0} - first))/$shares

export SUBMITIT_EXECUTOR=slurm # allows the evaluation to requeue its job
status=0
srun --export=ALL --cpus-per-task="$SLURM_CPUS_PER_TASK" python -u -m galaxyhpc evaluate "$sweep" --share "$share" || status=$?
((status != 75)) || exit $status # stopped by a signal: no time left for a report
python -u -m galaxyhpc aggregate "$sweep"
exit $status # 1: an evaluation failed; the report lists the missing runs
