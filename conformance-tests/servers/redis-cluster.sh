# A cluster of Redis or Valkey in one container, run by `sh -c` in the official image and in its stand-in alike.
# CLUSTER_PORTS: at least three ports, each published under the same number, because clients are told where
# the other nodes are: on 127.0.0.1, the only address that means the same inside and outside. A node's bus port is its port
# plus 10000.
# CLUSTER_PROGRAM: the server's program without `-server`, by default redis.
# CLUSTER_FULL_COVERAGE: `no` if the other nodes are to serve their keys while one is missing.
set -eu
program="${CLUSTER_PROGRAM:-redis}"

# A node that is killed comes back when there is no file named down in its directory. Its process id is in the file named pid.
# One that was told to shut down stays down.
serve() {
    while true; do
        if "$program-server" --port "$1" --dir "/tmp/node-$1" --protected-mode no --save '' --appendonly no \
            --pidfile "/tmp/node-$1/pid" --cluster-enabled yes --cluster-node-timeout 5000 \
            --cluster-require-full-coverage "${CLUSTER_FULL_COVERAGE:-yes}" --cluster-announce-ip 127.0.0.1; then
            return
        fi
        while [ -e "/tmp/node-$1/down" ]; do sleep 0.1; done
    done
}

nodes=
for port in $CLUSTER_PORTS; do
    mkdir -p "/tmp/node-$port"
    serve "$port" &
    nodes="$nodes 127.0.0.1:$port"
done
trap 'exit 0' INT TERM
for port in $CLUSTER_PORTS; do
    until "$program-cli" -p "$port" ping > /dev/null 2>&1; do sleep 0.1; done
done
# shellcheck disable=SC2086 # one argument per node
"$program-cli" --cluster create $nodes --cluster-yes
wait
