# shellcheck shell=sh
# Sourced by tools/site: what `hpcwrap setup slurm` says to add, added, each file once.

add_lines() {
    lines=$(on ctl "${prefix:?}/bin/hpcwrap" setup slurm --lines "$1")
    on ctl sh -c "grep -q -e share/hpcwrap -e spank_hpcwrap /etc/slurm/$1 2>/dev/null || cat >>/etc/slurm/$1" <<END
$lines
END
}

connect() {
    for file in slurm.conf plugstack.conf job_submit.lua; do add_lines "$file"; done
    on ctl "${prefix:?}/bin/hpcwrap" setup slurm --table >/dev/null
}
