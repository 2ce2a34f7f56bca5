#!/bin/busybox sh
# The first process of the virtual machine: runs the tests, says how they ended, turns it off.
# The kernel's own messages go to the console, everything else to the second serial port.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
stty raw </dev/ttyS1
exec >/dev/ttyS1 2>&1
export CI=true NO_COLOR=1 TMPDIR=/tmp TICKSCOPE_LOAD=/bin/tickscope-load TICKSCOPE_DAEMON=/bin/tickscope
read -r TICKSCOPE_KERNEL </kernel
export TICKSCOPE_KERNEL
it --test-threads=1 --nocapture matrix
echo "END $?"
poweroff -f
