# Sourced inside the job by the other scripts of this folder. Add what your cluster needs before Python starts, such as
#     module load python/3.11 cuda/12.4
# (Jobs of `galaxyhpc launch` do not use this file: they get such lines from `setup` in a profile, and run the Python
# that launched them.)

# A line of this file that fails ends the job, and is named: Python would run in another environment. Commands in files
# that are sourced here may fail. (`module` of Environment Modules 3 does not tell: check with `module list`.)
trap 'status=$? line=$LINENO
if ((${#BASH_SOURCE[@]} == 2)); then
    echo "slurm/env.sh:$line: $(sed -n "${line}p" slurm/env.sh): got exit status $status; expected 0" >&2
    exit 2
fi' ERR

export PATH # bash sets it but does not export it in a job that got no environment: SBATCH_EXPORT=NONE

# sbatch passes the environment of the shell on, including an active virtual environment; the fallback is ./.venv.
environment=${VIRTUAL_ENV:-$PWD/.venv}
if [ -f "$environment/bin/activate" ]; then
    . "$environment/bin/activate"
fi

# Import nothing from the current directory but, if it is not installed, galaxyhpc itself.
export PYTHONSAFEPATH=1
python -c 'import galaxyhpc' 2>/dev/null || export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

trap - ERR
