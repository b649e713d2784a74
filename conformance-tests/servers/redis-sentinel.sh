# A master, a replica and sentinels in one container, run by `sh -c` in the official image and in its stand-in alike.
# SENTINEL_PORTS: the master's, the replica's, and those of the sentinels, each published under the same number, because the
# sentinels tell clients where the master is: on 127.0.0.1, the only address that means the same inside and outside.
set -eu
# shellcheck disable=SC2086 # one argument per port
set -- $SENTINEL_PORTS
first=$1
second=$2
shift 2

is_master() {
    redis-cli -p "$1" role 2> /dev/null | grep -q '^master$'
}

# A server that ends comes back, empty and as a master, when the other one has taken its place: the sentinels will make it
# a replica. Before, it would only be in the way of the failover.
serve() {
    port=$1 other=$2
    shift 2
    while true; do
        redis-server --port "$port" --dir /tmp --protected-mode no --save '' --appendonly no --repl-diskless-sync-delay 0 \
            --enable-debug-command yes --replica-announce-ip 127.0.0.1 "$@" || true
        until is_master "$other"; do sleep 0.1; done
        shift $#
    done
}
serve "$first" "$second" &
until is_master "$first"; do sleep 0.1; done
serve "$second" "$first" --replicaof 127.0.0.1 "$first" &
until redis-cli -p "$second" info replication 2> /dev/null | grep -q '^master_link_status:up'; do sleep 0.1; done
# Nobody is down so soon that a busy machine could look like it; who wants a failover by itself sets it lower.
for port in "$@"; do
    printf '%s\n' "port $port" 'protected-mode no' 'sentinel announce-ip 127.0.0.1' \
        "sentinel monitor sessions 127.0.0.1 $first 2" \
        'sentinel down-after-milliseconds sessions 60000' \
        'sentinel failover-timeout sessions 5000' > "/tmp/sentinel-$port.conf"
    redis-server "/tmp/sentinel-$port.conf" --sentinel --dir /tmp &
done
trap 'exit 0' INT TERM
wait
