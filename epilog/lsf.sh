#!/bin/sh
# POST_EXEC of lsb.queues: drops the job's container (the job's user, who asks the helper).
# LSF runs it only after a PRE_EXEC that went well; what is left over is the sweep's.

prefix=${0%/share/hpcwrap/*}
exec "$prefix/bin/python3" -I -c 'from hpcwrap.hook import main; main("hooks.enter_lsf", "release")'
