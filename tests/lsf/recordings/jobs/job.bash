#! /bin/sh

$LSB_TRAPSIGS
$LSB_RCP1
$LSB_RCP2
$LSB_RCP3
# LSBATCH: User input
( cat <<_USER_\SCRIPT_
#!/bin/bash
cp "$LSB_JOBFILENAME" /dev/null
words=(one two)
echo ${words[1]}

_USER_SCRIPT_
) > $LSB_CHKFILENAME.shell
chmod u+x $LSB_CHKFILENAME.shell
test "$HPCWRAP_LSF" = "$LSB_JOBID.$LSB_JOBINDEX" || exec /opt/hpcwrap/share/hpcwrap/enter/lsf.sh; $LSB_JOBFILENAME.shell
saveExit=$?
/bin/rm -f $LSB_JOBFILENAME.shell
(exit $saveExit)

ExitStat=$?
wait
# LSBATCH: End user input
true
exit `expr $? "|" $ExitStat`
