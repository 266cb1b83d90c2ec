#!/bin/sh
# The files of a container's image, in /srv/job: busybox, and what shares this machine's libraries.
set -e
mkdir -p /srv/job/bin /srv/job/tmp /srv/job/etc
cp /bin/busybox /srv/job/bin/
for applet in sh sleep cat echo ping nslookup nc ip arping id ls; do ln -sf busybox /srv/job/bin/$applet; done
for program in /usr/bin/curl /usr/bin/python3; do
    for file in $program $(ldd $program | grep -o '/[^ ]*'); do mkdir -p /srv/job$(dirname $file); cp -L $file /srv/job$file; done
done
cp -r --parents $(python3 -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])') /srv/job
for file in /lib/*/libnss_dns.so.2 /lib/*/libnss_files.so.2; do cp -L --parents $file /srv/job; done
cp /etc/passwd /etc/group /brought/ask.py /brought/ca.crt /brought/attacks.py /srv/job/etc/
rm -rf /srv/job/usr/lib/python3*/test /srv/job/usr/lib/python3*/__pycache__
