# A master, a replica and sentinels in one container, run by `sh -c` in the official image and in its stand-in alike.
# SENTINEL_PORTS: the master's, the replica's, and those of the sentinels, each published under the same number, because the
# sentinels tell clients where the master is: on 127.0.0.1, the only address that means the same inside and outside.
# Where there are certificates in /tls, everything is reached by TLS only, and with passwords.
set -euf
# shellcheck disable=SC2086 # one argument per port
set -- $SENTINEL_PORTS
first=$1
second=$2
shift 2

listen=--port
server='--protected-mode no'
sentinel='--protected-mode no'
cli=redis-cli
if [ -d /tls ]; then
    listen='--port 0 --tls-port'
    tls='--tls-replication yes --tls-auth-clients no --tls-ca-cert-file /tls/ca.pem --tls-cert-file /tls/cert.pem'
    tls="$tls --tls-key-file /tls/key.pem"
    server="$server $tls --requirepass conformance --masterauth conformance --user sessions on >conformance ~* &* +@all"
    sentinel="$sentinel $tls --requirepass watching"
    cli='redis-cli --tls --cacert /tls/ca.pem --no-auth-warning -a conformance'
fi

# shellcheck disable=SC2086 # one argument per word, here and below
is_master() {
    $cli -p "$1" role 2> /dev/null | grep -q '^master$'
}

# A server that ends comes back, empty and as a master, when the other one has taken its place: the sentinels will make it
# a replica. Before, it would only be in the way of the failover.
# shellcheck disable=SC2086
serve() {
    port=$1 other=$2
    shift 2
    mkdir "/tmp/server-$port"
    while true; do
        redis-server $listen "$port" --dir "/tmp/server-$port" --save '' --appendonly no --rdb-del-sync-files yes \
            --repl-diskless-sync-delay 0 --enable-debug-command yes --replica-announce-ip 127.0.0.1 \
            $server "$@" || true
        until is_master "$other"; do sleep 0.1; done
        shift $#
    done
}
serve "$first" "$second" &
until is_master "$first"; do sleep 0.1; done
serve "$second" "$first" --replicaof 127.0.0.1 "$first" &
# shellcheck disable=SC2086
until $cli -p "$second" info replication 2> /dev/null | grep -q '^master_link_status:up'; do sleep 0.1; done

# Nobody is down so soon that a busy machine could look like it; who wants a failover by itself sets it lower.
for port in "$@"; do
    {
        echo 'sentinel announce-ip 127.0.0.1'
        echo "sentinel monitor sessions 127.0.0.1 $first 2"
        echo 'sentinel down-after-milliseconds sessions 60000'
        echo 'sentinel failover-timeout sessions 5000'
        if [ -d /tls ]; then
            echo 'sentinel auth-pass sessions conformance'
            echo 'sentinel sentinel-pass watching'
        fi
    } > "/tmp/sentinel-$port.conf"
    # shellcheck disable=SC2086
    redis-server "/tmp/sentinel-$port.conf" --sentinel $listen "$port" --dir /tmp $sentinel &
done
trap 'exit 0' INT TERM
wait
