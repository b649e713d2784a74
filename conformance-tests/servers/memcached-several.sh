# Several memcached servers in one container, run by `sh -c` in the official image and in its stand-in alike.
# MEMCACHED_PORTS: the port of each, published under the same number.
set -eu
for port in $MEMCACHED_PORTS; do
    memcached -u memcache -m 64 -p "$port" &
done
trap 'kill $(jobs -p)' INT TERM
wait
