# A Redis Cluster in one container, run by `sh -c` in the official image and in its stand-in alike.
# CLUSTER_PORTS: at least three ports, each published under the same number, because clients are told where
# the other nodes are: on 127.0.0.1, the only address that means the same inside and outside. A node's bus port is its port
# plus 10000.
set -eu
nodes=
for port in $CLUSTER_PORTS; do
    mkdir -p "/tmp/node-$port"
    redis-server --port "$port" --dir "/tmp/node-$port" --protected-mode no --save '' --appendonly no \
        --cluster-enabled yes --cluster-node-timeout 5000 --cluster-announce-ip 127.0.0.1 &
    nodes="$nodes 127.0.0.1:$port"
done
trap 'kill $(jobs -p)' INT TERM
for port in $CLUSTER_PORTS; do
    until redis-cli -p "$port" ping > /dev/null 2>&1; do sleep 0.1; done
done
# shellcheck disable=SC2086 # one argument per node
redis-cli --cluster create $nodes --cluster-yes
wait
