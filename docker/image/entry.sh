#!/bin/sh
# The first process of a box: makes the container look like a machine of its own, then becomes systemd.
set -eu
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -o remount,rw /sys/fs/cgroup
else # a host with cgroup v1: systemd gets the unified tree that is beside it
    umount -R /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
# The kernel has one log queue for all containers, and whoever reads a line takes it from the others. So this box
# gets a pipe of its own, into which the relay beside it puts the lines that are about this box's addresses.
[ -p /.box/kmsg ] || mkfifo -m 600 /.box/kmsg
mount --bind /.box/kmsg /proc/kmsg
ssh-keygen -A >/dev/null
exec /sbin/init
