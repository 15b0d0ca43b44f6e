#!/bin/sh
# JOB_STARTER of lsb.queues: runs the job's file in its container (the job's user).
# With another code than the job's own only where there is no container to be had: 125.

prefix=${0%/share/hpcwrap/*}
part() {
    "$prefix/bin/python3" -I -c \
        'from hpcwrap.hook import main; main("hooks.enter_lsf", "'"$1"'")'
}

# LSF signals each process of a job: as its own job file does, this one waits for the others.
trap : HUP INT TERM USR1 USR2
part start
code=$?
part explain
exit "$code"
