#!/bin/sh
# PID 1 of the initramfs of images with a disk: load what the kernel needs to see it, and go there.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1

while read -r module; do insmod "/modules/$module"; done < /modules/order

root=/dev/vda init=/sbin/init mode=ro
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
        rw | ro) mode=$word ;;
    esac
done
# The kernel finds the disk on its own time: wait for it, but not for ever.
tries=0
until [ -b "$root" ] || [ $tries -ge 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
if ! mount -t ext4 -o "$mode" "$root" /root; then
    echo "dvisor: no root file system on $root; disks seen: $(ls /sys/block)"
    exec sh -i
fi
umount /proc
umount /sys
mount --move /dev /root/dev
exec switch_root /root "$init"
