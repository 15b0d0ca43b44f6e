#!/bin/sh
# JOB_STARTER of lsb.queues: becomes the job's file in its container (the job's user).
# With another code than the job's own only where there is no container to be had: 125.

prefix=${0%/share/hpcwrap/*}
exec "$prefix/bin/python3" -I -c 'from hpcwrap.hook import main; main("lsfjob", "start")'
