#!/bin/sh
# Installs outgate from the files brought here, as the package does.
set -e
cd /brought
install -m 755 outgate /usr/bin/outgate
install -D -m 644 systemd/outgate.sysusers /usr/lib/sysusers.d/outgate.conf
install -D -m 644 systemd/outgate.tmpfiles /usr/lib/tmpfiles.d/outgate.conf
install -D -m 644 systemd/networkd.conf /usr/lib/systemd/networkd.conf.d/50-outgate.conf
install -m 644 systemd/*.service systemd/*.socket systemd/*.timer /usr/lib/systemd/system/
systemd-sysusers outgate.conf
systemd-tmpfiles --create outgate.conf
install -m 644 packaging/outgate.toml /etc/outgate/outgate.toml
install -m 644 whitelist/* /etc/outgate/whitelist/
systemctl daemon-reload
systemctl enable -q outgate.socket outgate-admin.socket outgate.service
systemctl start outgate.socket outgate-admin.socket outgate.service
