#!/bin/sh
# PRE_EXEC of lsb.queues: has the job's container made (the job's user, who asks the helper).
# LSF tries a job again, elsewhere if it can, after any code but 0 and 99: only an unfit node gives
# one.  What went wrong otherwise is for the starter to tell: nobody sees the output of PRE_EXEC.

prefix=${0%/share/hpcwrap/*}
starter_tells=125

"$prefix/bin/python3" -I -c 'from hpcwrap.hook import main; main("hooks.enter_lsf", "prepare")'
code=$?
[ "$code" -eq "$starter_tells" ] || exit "$code"
