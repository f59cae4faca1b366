#!/bin/sh
# systemd, on a view of this host in which the daemon is installed. To be started in mount, PID,
# network, IPC, host name and cgroup namespaces of its own; nothing that it changes outlives it.
#
# boot.sh DIRECTORY INSTALLATION   an empty directory, and what `just install` has put below DESTDIR
set -eu

directory=$1
installation=$2
root=$directory/root

mount --make-rprivate /
mount -t tmpfs tmpfs "$directory"
mkdir "$directory/changes" "$directory/work" "$root"
tar c -C "$installation" --exclude=./usr/lib/hypeman . | tar x -C "$directory/changes"
mount -t overlay overlay \
    -o "lowerdir=/,upperdir=$directory/changes,workdir=$directory/work" "$root"
mkdir -p "$root/usr/lib/hypeman"
mount --bind "$installation/usr/lib/hypeman" "$root/usr/lib/hypeman"

# Only our units and systemd's own: whatever else this host starts is none of the test's.
rm -rf "$root/etc/systemd/system"
mkdir -p "$root/etc/systemd/system/hypeman.service.d"
cat >"$root/etc/systemd/system/hypeman.service.d/test.conf" <<EOF
[Service]
Environment=ACCELERATOR=tcg METRICS_ADDRESS=none POOL_SIZE=0
WatchdogSec=3
EOF
cat >"$root/etc/systemd/system/test.target" <<EOF
[Unit]
Requires=basic.target
Wants=hypeman.socket hypeman.service
EOF

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/var/lib"
mount -t tmpfs -o mode=755 tmpfs "$root/var/log"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"

cd "$root"
mkdir run/host
pivot_root . run/host
exec chroot . /bin/sh -c 'umount -l /run/host; mount --make-rshared /; exec env -i container=test \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/lib/systemd/systemd --unit=test.target --show-status=no'
