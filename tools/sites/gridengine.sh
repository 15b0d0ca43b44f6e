# shellcheck shell=sh
# Sourced by tools/site: what `hpcwrap setup gridengine` says to add, added by qconf from files.

change() {
    on ctl sh -s -- "$1" "$2" "$3" "$(on ctl "${prefix:?}/bin/hpcwrap" setup gridengine --lines "$3")" <<'END'
[ -n "$4" ] || exit 0
dir=$(mktemp -d)
export SGE_SINGLE_LINE=1
qconf "$1" >"$dir/global"
printf '%s\n' "$4" | while read -r name rest; do
    [ -n "$name" ] || continue
    sed -i "/^$name /d" "$dir/global"
    echo "$name $rest" >>"$dir/global"
done
qconf "$2" "$dir/global" >/dev/null 2>&1
rm -r "$dir"
END
}

connect() {
    change -sc -Mc complex
    change -sconf -Mconf conf
    on ctl "${prefix:?}/bin/hpcwrap" setup gridengine --table >/dev/null
}
