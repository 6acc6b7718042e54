# Sourced by the scripts beside it, inside the job. Put here what your cluster needs before Python starts, such as
#     module load python/3.11 cuda/12.4
# (Jobs of `galaxyhpc.launch` get such lines from `setup` in a profile, and run the Python that launched them.)

# sbatch hands on the shell's environment, an active virtual environment included; else the project's own is taken.
environment=${VIRTUAL_ENV:-$PWD/.venv}
if [ -f "$environment/bin/activate" ]; then
    . "$environment/bin/activate"
fi
