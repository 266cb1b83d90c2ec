#!/bin/sh
# What a virtual machine does once it is up: runs the commands that come over the second serial port, one a
# line: a number, a limit in seconds, and the command. For each it writes the output, every line behind
# "| ", and then "= NUMBER EXIT-STATUS HUNDREDTHS-OF-A-SECOND".
hundredths() {
    read -r up _ </proc/uptime
    echo "${up%.*}${up#*.}"
}

stty -F /dev/ttyS1 -echo -onlcr
exec </dev/ttyS1 >/dev/ttyS1
echo '= 0 0 0'
while read -r number limit command; do
    begin=$(hundredths)
    timeout -s KILL "$limit" sh -c "$command" >/tmp/output 2>&1 </dev/null
    status=$?
    end=$(hundredths)
    sed 's/^/| /; $a\' /tmp/output
    echo "= $number $status $((end - begin))"
done
