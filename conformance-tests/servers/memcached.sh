#!/bin/sh
# Entry point of the memcached stand-in.
#   no arguments, or options only   run memcached with them
#   memcached …                     run it as its own user
#   anything else                   run that
set -eu

case "${1:-}" in
    '' | -*) set -- memcached "$@" ;;
esac
if [ "$1" = memcached ]; then
    set -- "$@" -u memcache
fi
exec "$@"
