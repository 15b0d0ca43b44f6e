# shellcheck shell=sh
# Sourced by tools/site: what `hpcwrap setup lsf` says to add, in every queue and in lsf.conf; where
# LSF's commands are; and what systemd would do, the helper's socket.

configuration=/var/lib/lsf/conf

# The lines of a queue, into each that has none.
add_to_queues() {
    lines=$(on ctl "${prefix:?}/bin/hpcwrap" setup lsf --lines lsb.queues)
    [ -n "$lines" ] || return 0
    # shellcheck disable=SC2016 # for the shell over there
    on ctl sh -c 'awk -v lines="$1" "/^End Queue/ { print lines } { print }" "$2" >"$2.new" && mv "$2.new" "$2"' \
        sh "$lines" $configuration/lsb.queues
}

# As the cluster's administrator.  mbatchd starts anew, and a command that finds it away asks again
# only after ten seconds.
reconfigure() {
    on ctl setpriv --reuid=daemon --regid=daemon --clear-groups badmin reconfig >/dev/null 2>&1
    sleep 1
    until on ctl timeout 1 bqueues >/dev/null 2>&1; do :; done
    # shellcheck disable=SC2034 # tools/site reads it
    restart=
}

connect() {
    add_to_queues
    on ctl sh -c "cat >>$configuration/lsf.conf" <<END
$(on ctl "${prefix:?}/bin/hpcwrap" setup lsf --lines lsf.conf)
END
    on ctl sh -c "mkdir -p ${shared:?}/etc/conf.d && echo lsf_commands: \$LSF_BINDIR >$shared/etc/conf.d/lsf.yaml"
    for node in $(nodes); do on "$node" "$prefix/bin/hpcwrap" setup lsf --table >/dev/null; done
    for node in $(nodes); do start_helper "$node"; done
    reconfigure
}

start_helper() {
    on "$1" sh -c 'test -S /run/hpcwrap/helper.sock' || on "$1" setsid --fork "$PWD/tools/listen" \
        /run/hpcwrap/helper.sock "$prefix/bin/python3" -I -c 'from hpcwrap.helper import main; main()' \
        >/dev/null 2>&1 </dev/null
}
