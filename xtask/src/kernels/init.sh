#!/bin/sh
# The first process of a guest. It prints a line that begins with RESULT at each stage, and ends the guest.
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir /run/netns
exec 2>&1
echo "RESULT boot $(uname -r)"
while read -r module; do insmod "/modules/$module"; done < /modules/order
ip link set lo up
timeout 900 /programs/tests --nocapture --test-threads=1 bpf::tests::loading::
echo "RESULT programs $?"
TCPCOPY_BIN_DIR=/programs timeout 300 /programs/demo --seconds 3 --rate 300
echo "RESULT mirror $?"
poweroff -f
