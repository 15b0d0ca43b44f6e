#!/bin/sh
# Epilog= of slurm.conf: drops the job's container on this node (root).
set -u

job=/run/hpcwrap/jobs/${SLURM_JOB_ID:?}
[ -e "$job" ] || exit 0

prefix=${0%/share/hpcwrap/*}
# Once more for one that was killed: only Python knows of the leases in the store.
for _ in 1 2; do
    "$prefix/bin/python3" -I -c 'from hpcwrap.hook import main; main("epilog", "slurm")' && exit 0
done

# Not even Python ran.  Slurm drains the node when an epilog fails, and there is no need: what is to
# be done can be done without; the job's leases are left to a sweep, which the next prolog starts.
/usr/bin/umount --lazy "$job/ns/mnt" "$job/ns/user" 2>/dev/null
/usr/bin/rm -f /run/hpcwrap/swept
exec /usr/bin/rm -r --one-file-system "$job"
