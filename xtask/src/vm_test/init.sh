#!/bin/busybox sh
# The first process of the machine of `cargo xtask vm-test`: teardown tests, and those of the host,
# on cgroup v2.
/bin/busybox --install -s /bin
export PATH=/bin
# As cargo has it: what the lock validator reports is a failure.
export LOCKDEP=strict
mkdir -p /proc /sys /dev /tmp /etc
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
mount -t tmpfs tmp /tmp
chmod 1777 /tmp
echo "nobody:x:65534:65534::/:/bin/sh" > /etc/passwd
G=/sys/fs/cgroup
failures=0

# check NAME CODE WORDS COMMAND...: the command ends with the code and prints the words.
check() {
    name=$1; code=$2; words=$3; shift 3
    "$@" > /tmp/out 2>&1 < /dev/null
    got=$?
    if [ $got = "$code" ] && grep -q -- "$words" /tmp/out; then
        echo "vm-test: ok: $name"
    else
        echo "vm-test: FAILED: $name: code $got, wanted $code and \"$words\""
        cat /tmp/out
        failures=$((failures + 1))
    fi
}

# No verdict depends on how busy the machine is.
T="pinless teardown --slow 60000 --patience 600"
P="$T --stuck 120"
echo "vm-test: Linux $(uname -r), cgroup v2"
check "starts under the limit" 0 "cgroup v2" $P --limit 32M -- leaker
check "verdict" 0 "verdict: clean" $P --limit 32M -- leaker
check "a limit below what is in use" 0 "limit set" $P --limit 8M --limit-when rss-stable -- leaker 24
check "a limit when it says so" 0 "verdict: clean" $P --limit 8M --limit-when ready-fd -- leaker 24
check "the reaper, when held" 0 "reaper pass over" $P --limit 32M --hold -- leaker
check "three rounds" 0 "3 clean of 3" $P --limit 8M --repeat 3 -- leaker
check "ends by itself" 2 "ended by itself" $P --limit 32M -- leaker 8 end
mkfifo /tmp/fifo
exec 9<>/tmp/fifo
check "pages that are kept" 5 "stay charged" $T --limit 4M --stuck 5 -- page_keeper /tmp/fifo
exec 9>&-

# What the kernel is too old for is skipped, and says so.
check "the host's parts" 0 "test result: ok" host-unit --test-threads 2
check "the host's tests" 0 "test result: ok" host-it --test-threads 2 --nocapture
echo "vm-test: $(grep -c "^skipped:" /tmp/out) of them lack something"

# A group that was handed to an ordinary user: alone in it, he may; beside others, the kernel
# does not let him switch the controller on.
mkdir $G/user
echo +memory > $G/cgroup.subtree_control
echo +memory > $G/user/cgroup.subtree_control
mkdir $G/user/scope
chown -R nobody $G/user/scope
chmod 666 /tmp/out
echo "echo 0 > /sys/fs/cgroup/user/scope/cgroup.procs
exec su nobody -c 'exec $P --limit 32M -- leaker'" > /tmp/alone
check "an ordinary user, in his group" 0 "verdict: clean" sh /tmp/alone
check "an ordinary user, elsewhere" 2 "be root, or give a group" su nobody -c "$T -- leaker"

left=$(find $G -name 'pinless*'; ls /sys/kernel/tracing/instances)
if [ -n "$left" ]; then
    echo "vm-test: FAILED: left behind: $left"
    failures=$((failures + 1))
fi
[ $failures = 0 ] && echo "vm-test: passed"
poweroff -f
