#!/bin/sh
# Epilog= of slurm.conf: drops the job's container on this node (root), and those of its steps' own.
set -u

prefix=${0%/share/hpcwrap/*}
job=/run/hpcwrap/jobs/${SLURM_JOB_ID:?}
code=0

gpus=/run/hpcwrap/gpus/$SLURM_JOB_ID
[ ! -e "$gpus" ] || /usr/bin/rm -f "$gpus"

# $1: what is to be dropped; $2: the step that it is of, empty for the job itself.
drop() {
    # Once more for one that was killed: only Python knows of the leases in the store.
    for _ in 1 2; do
        HPCWRAP_STEP=$2 "$prefix/bin/python3" -I -c \
            'from hpcwrap.hook import main; main("epilog", "slurm")' && return
    done
    # Not even Python ran.  Slurm drains the node when an epilog fails, and there is no need: what is to
    # be done can be done without; leases are left to a sweep, which the next prolog starts.
    /usr/bin/umount --lazy "$1/ns/mnt" "$1/ns/user" 2>/dev/null
    /usr/bin/rm -f /run/hpcwrap/swept
    /usr/bin/rm -r --one-file-system "$1"
}

for place in "$job" "$job".*; do
    step=${place#"$job"}
    [ ! -e "$place" ] || drop "$place" "${step#.}" || code=1
done
exit "$code"
