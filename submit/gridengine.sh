#!/bin/sh
# jsv_url of sge_conf(5) as script:PATH, or qsub -jsv PATH: Grid Engine's filter for jobs.  It runs as
# the admin user with sge_qmaster's environment, or as a user with the user's.
prefix=${0%/share/hpcwrap/*}
exec "$prefix/bin/python3" -I -c \
    'from hpcwrap.hook import main; main("hooks.submit_gridengine", "gridengine")'
