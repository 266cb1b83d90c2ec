#!/bin/sh
# The surroundings of outgate on the machine: a bridge with a guest behind it, an internet with servers, and a
# machine that would forward everything. Namespaces `guest` and `internet`.
set -e
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
ip -batch - <<END
netns add guest
netns add internet
link add br0 type bridge
link add name eth0 netns guest type veth peer name port1
link add name eth0 netns internet type veth peer name up0
link set port1 master br0
link set port1 up
link set br0 up
link set up0 up
addr add 10.42.42.1/24 dev br0
addr add fd42:42::1/64 dev br0 nodad
addr add 11.0.0.1/24 dev up0
addr add 2600:10::1/64 dev up0 nodad
END
for name in guest internet; do
    ip netns exec $name sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
done
ip -n guest -batch - <<END
link set lo up
link set eth0 up
addr add 10.42.42.2/24 dev eth0
addr add fd42:42::2/64 dev eth0 nodad
route add default via 10.42.42.1
END
ip -n guest -6 route add default via fd42:42::1
ip -n internet -batch - <<END
link set lo up
link set eth0 up
addr add 11.0.0.10/24 dev eth0
addr add 11.0.0.66/24 dev eth0
addr add 11.0.0.53/24 dev eth0
addr add 2600:10::10/64 dev eth0 nodad
addr add 2600:10::66/64 dev eth0 nodad
addr add 8.8.8.8/32 dev eth0
addr add 1.1.1.1/32 dev eth0
route add default via 11.0.0.1
END
ip -n internet -6 route add default via 2600:10::1
mkdir -p /etc/netns/guest /run/world
# Not that of the machine on which the disk was made.
echo 'nameserver 11.0.0.53' >/etc/resolv.conf
echo 'nameserver 1.1.1.1' >/etc/netns/guest/resolv.conf
cp /brought/tls.crt /brought/tls.key /run/world/
mkfifo /run/world/ready
ip netns exec internet python3 /brought/outside.py internet /run/world >/run/world/ready 2>/run/world/outside.err &
read -r word </run/world/ready && [ "$word" = ready ]
ip netns exec internet python3 /brought/load.py serve >/dev/null 2>&1 &
