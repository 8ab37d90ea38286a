#!/bin/sh
# Give eth0 a static address: that of QEMU's user network, or the one on the kernel command line as
# dvisor.ip=ADDRESS/BITS[,GATEWAY] (dvisor.ip=none leaves the card alone). No DHCP: it costs a
# second under TCG.
ip=10.0.2.15/24,10.0.2.2
for word in $(cat /proc/cmdline); do
    case $word in
        dvisor.ip=*) ip=${word#dvisor.ip=} ;;
    esac
done
ip link set lo up
[ -d /sys/module/virtio_net ] || modprobe virtio_net
[ "$ip" != none ] && [ -e /sys/class/net/eth0 ] || exit 0
ip address add "${ip%,*}" dev eth0
ip link set eth0 up
case $ip in
    *,*) ip route add default via "${ip#*,}" ;;
esac
