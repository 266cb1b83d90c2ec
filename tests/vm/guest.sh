#!/bin/busybox sh
# The virtual machine's init. It sets up what a tenant's image would, an address, a default route and a
# resolver, and then runs the commands that come over the second serial port (obey.sh).
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin /proc /sys /dev /tmp
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/tmp LANG=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "$module"
done </modules/order

ip link set lo up
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set eth0 up
ip addr add 10.42.42.2/24 dev eth0
ip -6 addr add fd42:42::2/64 dev eth0
ip route add default via 10.42.42.1
ip -6 route add default via fd42:42::1
echo 'nameserver 1.1.1.1' >/etc/resolv.conf
# Standard input for a client that sends nothing and does not close: <>/tmp/silence
mkfifo /tmp/silence

. /obey.sh
