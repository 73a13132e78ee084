#!/nacre/busybox sh
# First process of the guest. Loads the drivers that are in /nacre/modules, and gets addresses for the network cards that /nacre/dhcp names. With /nacre/exec there, runs that command: its stdout goes to ttyS1, its stderr to ttyS2
# and "exit N" to ttyS3. Without, gives a shell on the console. Then powers off.
bb=/nacre/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=${TERM:-linux}

$bb mkdir -p /proc /sys /dev /tmp /root
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev 2>/dev/null
cd /root

for module in /nacre/modules/*.ko; do
    [ -f "$module" ] && { $bb insmod "$module" || echo "nacre: $module does not load"; }
done

# Where the console's driver was among them, this process has no console yet.
case $($bb cat /proc/cmdline) in
*console=hvc0*) [ -c /dev/hvc0 ] && exec </dev/hvc0 >/dev/hvc0 2>&1 ;;
esac

if [ -f /nacre/dhcp ]; then
    $bb mkdir -p /etc
    $bb ip link set lo up
    for card in $($bb cat /nacre/dhcp); do
        $bb udhcpc -i $card -n -q -t 10 -T 1 -s /nacre/dhcp.sh >/dev/null 2>&1 || echo "nacre: $card gets no address"
    done
fi

if [ -x /bin/sh ]; then shell=/bin/sh; else shell="$bb sh"; fi

if [ -f /nacre/exec ]; then
    for tty in /dev/ttyS1 /dev/ttyS2 /dev/ttyS3; do
        if ! $bb stty -F $tty raw -echo; then
            echo "nacre: the command cannot run: $tty does not work"
            $bb poweroff -f
        fi
    done
    # Closing a port waits until the last byte has left, so each is open only while it is used.
    $bb setsid $shell -c "$($bb cat /nacre/exec)" </dev/null >/dev/ttyS1 2>/dev/ttyS2
    status=$?
    echo "exit $status" >/dev/ttyS3
else
    $bb setsid $bb cttyhack $shell -l
fi
$bb sync
$bb poweroff -f
