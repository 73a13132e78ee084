#!/nacre/busybox sh
# udhcpc calls this with what happened to a network card and, once there is one, its lease.
bb=/nacre/busybox

case $1 in
deconfig)
    $bb ip addr flush dev $interface
    $bb ip link set $interface up
    ;;
bound | renew)
    $bb ip addr add $ip/${mask:-24} dev $interface
    for gateway in $router; do
        $bb ip route add default via $gateway dev $interface && break
    done
    for server in $dns; do
        echo "nameserver $server"
    done >/etc/resolv.conf
    ;;
esac
