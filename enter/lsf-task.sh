#!/bin/sh
# What lsrun or blaunch starts on a later host: [--tell] COMMAND, in the job's container there (the
# job's user).  --tell: lsrun of volclava loses the exit code, so the last line of stderr has it.
# LSF runs no POST_EXEC here: the last command to end has the container dropped.

prefix=${0%/share/hpcwrap/*}
task() {
    "$prefix/bin/python3" -I -c 'from hpcwrap.hook import main; main("lsfjob", "'"$1"'")' "$2"
}

tell=
[ "$1" = --tell ] && tell=yes && shift
task task "$*"
code=$?
task tidy ''
[ -z "$tell" ] || echo "hpcwrap-code-$LSB_JOBID $code" >&2
exit "$code"
