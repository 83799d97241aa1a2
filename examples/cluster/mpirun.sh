#!/bin/sh
# Run fit.py in processes of Open MPI, one for each GPU:
#
#     sh mpirun.sh -n 8 --hostfile hosts
#
# Arguments are those of mpirun. Start it on the host of the first process, as a batch
# system does, or set COORDINATOR to that host and a free port of it.

# JAX finds Open MPI 4 by itself, but not Open MPI 5: so processes are numbered here.
coordinator=${COORDINATOR:-$(hostname):$((61440 + $$ % 4096))}

# On SIGTERM and on Ctrl-C mpirun waits so many seconds, ends the processes by SIGTERM,
# and kills them after as many again. One second, its default, is too short to save the
# run. The second name is that of Open MPI 5.
export OMPI_MCA_odls_base_sigkill_timeout=10
export PRTE_MCA_odls_base_sigkill_timeout=10

# Not bound to one core each: compiling uses several.
# shellcheck disable=SC2016 # expanded in each process
exec mpirun --bind-to none "$@" sh -c '
    JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK
    export JAX_LOCAL_DEVICE_IDS
    exec python fit.py --coordinator "$0" \
        --processes "$OMPI_COMM_WORLD_SIZE" --process "$OMPI_COMM_WORLD_RANK"
' "$coordinator"
