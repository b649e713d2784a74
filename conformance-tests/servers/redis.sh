#!/bin/sh
# Entry point of the redis and valkey stand-ins: what the official images promise and the suite relies on.
#   no arguments, or options only   run the server
#   redis-server/valkey-server …    run it as its own user, listening on all addresses
#   anything else                   run that
set -eu

server=redis-server user=redis
if [ -x /usr/bin/valkey-server ]; then server=valkey-server user=valkey; fi

case "${1:-}" in
    '' | -*) set -- "$server" "$@" ;;
esac
if [ "$1" = "$server" ]; then
    set -- setpriv --reuid="$user" --regid="$user" --init-groups "$@" --protected-mode no
    cd /var/lib/"$user"
fi
exec "$@"
