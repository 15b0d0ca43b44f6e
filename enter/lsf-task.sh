#!/bin/sh
# What lsrun or blaunch starts on a later host: [--tell] COMMAND, in the job's container there (the
# job's user).  --tell: lsrun of volclava loses the exit code, so the last line of stderr has it.
# LSF runs no POST_EXEC here: the last command to end has the container dropped, in a session of its
# own, for with the job's end LSF kills what it has started here.

prefix=${0%/share/hpcwrap/*}
run='from hpcwrap.hook import main; main("hooks.enter_lsf", "task")'
tidy='from hpcwrap.hook import main; main("hooks.enter_lsf", "tidy")'

tell=
[ "$1" = --tell ] && tell=yes && shift
"$prefix/bin/python3" -I -c "$run" "$*"
code=$?
/usr/bin/setsid --fork "$prefix/bin/python3" -I -c "$tidy" </dev/null >/dev/null 2>&1
[ -z "$tell" ] || echo "hpcwrap-code-$LSB_JOBID $code" >&2
exit "$code"
