#!/bin/sh
# apptainer build inside another root, in a mount namespace that this script was started in:
#   unshare --mount sh apptainer.sh ROOT WORK REFERENCE
set -eu
root=$1 work=$2 reference=$3

mount --make-rprivate /
mount --bind "$root" "$root"
mount -t tmpfs none "$root/mnt"
mkdir "$root/mnt/work"
mount --bind "$work" "$root/mnt/work"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs none "$root/run"
# It wants to read these, which no package brings.
for file in hosts resolv.conf; do
    [ -e "$root/etc/$file" ] || : >"$root/etc/$file"
done
mkdir "$work/cache" "$work/tmp"

exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/mnt/work \
    APPTAINER_CACHEDIR=/mnt/work/cache APPTAINER_TMPDIR=/mnt/work/tmp \
    apptainer --quiet build --no-https /mnt/work/image.sif "docker://$reference"
