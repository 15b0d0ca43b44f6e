#!/bin/sh
# Prolog= of slurm.conf: makes the job's container on this node (root, PrologFlags=Alloc); the plugin
# runs it for a step's own container, which HPCWRAP_STEP names.
# Slurm sets no PATH, and drains the node on any code but 0: only an unfit node gives one.
set -u

prefix=${0%/share/hpcwrap/*}
unfit=4

"$prefix/bin/python3" -I -c 'from hpcwrap.hook import main; main("prolog", "slurm")'
code=$?
[ "$code" -eq 0 ] && exit 0
[ "$code" -eq "$unfit" ] && exit 1

# Not even Python could say what is wrong (killed, or the installation is broken): the job must not
# run on the host, and the node must not be drained for a fault that is not its own.
job=/run/hpcwrap/jobs/${SLURM_JOB_ID:?}${HPCWRAP_STEP:+.$HPCWRAP_STEP}
/usr/bin/mkdir -p "$job" && /usr/bin/rm -f "$job/entry" &&
    echo "the prolog ended with code $code on ${SLURMD_NODENAME:-this node}; see slurmd's log" \
        >"$job/error"
