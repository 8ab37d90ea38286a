#!/bin/sh
# A small PID 1 for tests (kernel command line: init=/sbin/dvisor-init): the Debian userland and its
# root shell without systemd, in half the time.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/sshd /run/lock
hostname dvisor

# Opened before the ready line is written: input sent before anyone has the terminal open is lost.
exec </dev/ttyS0 >/dev/ttyS0 2>&1

/usr/lib/dvisor/net

export HOME=/root TERM=dumb PS1='dvisor# '
cd /root || exit
echo
echo 'dvisor: ready'
# Opened anew each time: the end of a session hangs its terminal up for all that have it open.
while :; do
    setsid --ctty --wait bash --noprofile --norc --noediting -i </dev/ttyS0 >/dev/ttyS0 2>&1
done
