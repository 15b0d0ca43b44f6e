#!/bin/sh
# SINGULARITY of HTCondor's configuration: runs a job in hpcwrap's container (the job's user).
# What a job puts before its libraries is for its own programs: it comes again, with a prefix.
unset LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT

prefix=${0%/share/hpcwrap/*}
exec "$prefix/bin/python3" -I -c \
    'from hpcwrap.hook import main; main("hooks.enter_htcondor", "start")' "$@"
