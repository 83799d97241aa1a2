#!/bin/bash
# Run fit.py under SLURM, one process for each GPU. At its time limit the job saves the
# run and queues itself again, until the run has ended:
#
#     sbatch slurm.sh
#
# Arguments are those of fit.py.

#SBATCH --job-name=fit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
# Not --gpus-per-task: every process must see the GPUs of its node to choose its own.
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
# Two minutes before the limit every process gets a SIGTERM: batchkit saves the run, and
# the processes end by the signal. Give it as long as a step and a checkpoint may take.
#SBATCH --signal=TERM@120
# SLURM queues the job again after a node has failed.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=fit-%j.log

checkpoint=${CHECKPOINT:-run.h5}

time_saved() {
    stat --format=%y "$checkpoint" 2>/dev/null
}

before=$(time_saved)
# If one process fails, the others end by themselves. SLURM would end them by SIGTERM
# too, and the error would look like the time limit.
srun --kill-on-bad-exit=0 python fit.py --checkpoint "$checkpoint" "$@"
status=$?

# 143 is SIGTERM. A job that has saved nothing new is not repeated: it would do the same
# again, for ever.
if [ "$status" -eq 143 ] && [ "$(time_saved)" != "$before" ]; then
    echo "stopped before the time limit, and queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
