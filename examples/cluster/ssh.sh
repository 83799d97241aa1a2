#!/bin/bash
# Run fit.py on some hosts, one process on each, with all GPUs of the host:
#
#     bash ssh.sh node1 node2 node3
#
# The first host is the coordinator, which the others must reach by this name. All hosts
# have this folder and this Python, at the same paths. When one process fails, and on
# Ctrl-C or SIGTERM, all are ended.

if [ $# -eq 0 ]; then
    echo "usage: bash ssh.sh HOST..." >&2
    exit 2
fi
first=${1#*@}
coordinator=${COORDINATOR:-$first:$((61440 + $$ % 4096))}
python=$(command -v "${PYTHON:-python}") || exit 2

# Runs on each host. When its input ends, or ssh here, it ends the program by SIGTERM,
# and batchkit saves the run. sshd would let the program run on.
# shellcheck disable=SC2016 # expanded on the host
remote='
cd "$1" || exit
shift
exec 3<&0
"$@" </dev/null 3<&- &
program=$!
{ cat <&3; kill "$program"; } >/dev/null 2>&1 &
watch=$!
wait "$program"
status=$?
kill "$watch"
exit "$status"
'

# The login shell of a host, which may be any, splits what ssh sends it.
quote() {
    printf "'%s' " "${@//\'/\'\\\'\'}"
}

# The input of all hosts. Only this script can write there, so it ends when the script
# does, however that ends.
folder=$(mktemp -d)
mkfifo "$folder/input"
exec 3<>"$folder/input"
exec 4<"$folder/input"
rm -r "$folder"

end_all() {
    trap - INT TERM
    exec 3>&-
    wait
    exit "$1"
}
trap 'end_all 130' INT
trap 'end_all 143' TERM

number=0
for host in "$@"; do
    ssh -o BatchMode=yes -o ServerAliveInterval=20 "$host" "$(
        quote sh -c "$remote" sh "$PWD" "$python" fit.py \
            --coordinator "$coordinator" --processes $# --process "$number"
    )" <&4 3>&- 4<&- &
    number=$((number + 1))
done

for _ in "$@"; do
    wait -n
    status=$?
    if [ "$status" -ne 0 ]; then
        echo "a process has ended with status $status" >&2
        end_all "$status"
    fi
done
