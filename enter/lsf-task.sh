#!/bin/sh
# What lsrun or blaunch starts on a later host: [--tell] COMMAND, in the job's container there (the
# job's user).  --tell: lsrun of volclava loses the exit code, so the last line of stderr has it.

prefix=${0%/share/hpcwrap/*}
run='from hpcwrap.hook import main; main("lsfjob", "task")'
[ "$1" = --tell ] || exec "$prefix/bin/python3" -I -c "$run" "$@"

shift
"$prefix/bin/python3" -I -c "$run" "$@"
code=$?
echo "hpcwrap-code-$LSB_JOBID $code" >&2
exit "$code"
