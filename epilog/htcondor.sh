#!/bin/sh
# HPCWRAP_HOOK_JOB_EXIT of HTCondor's configuration: drops the job's container (the job's
# user); with the word sweep, what is left of any job (the startd's user).
unset LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT

prefix=${0%/share/hpcwrap/*}
exec "$prefix/bin/python3" -I -c \
    'from hpcwrap.hook import main; main("hooks.enter_htcondor", "release")' "$@" </dev/null
