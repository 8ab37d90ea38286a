#!/bin/sh
# PID 1 of the image "tiny".
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
hostname tiny

# Opened before the ready line is written: input sent before anyone has the terminal open is lost.
exec </dev/ttyS0 >/dev/ttyS0 2>&1

# 0x1af4 is the PCI vendor of virtio devices; without one, its modules would be loaded for nothing.
if grep -qs 0x1af4 /sys/bus/pci/devices/*/vendor; then
    while read -r module; do insmod "/modules/$module"; done < /modules/order
fi
ip link set lo up
[ -e /sys/class/net/eth0 ] && /bin/dvisor-net

export HOME=/root TERM=dumb PS1='dvisor# '
cd /root
echo
echo 'dvisor: ready'
# Opened anew each time: the end of a session hangs its terminal up for all that have it open.
while :; do
    setsid -c sh -i </dev/ttyS0 >/dev/ttyS0 2>&1
done
