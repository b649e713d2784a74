# A primary and a standby that follows it, in one container, run by `sh -c` in the official image and in its stand-in alike.
# PAIR_PORTS: the primary's and the standby's, each published under the same number.
# Replication is asynchronous, until a test sets synchronous_standby_names. Logins are not checked: in an unoptimized build, the
# driver computes a SCRAM proof for so long that a test would measure that.
set -eu
# shellcheck disable=SC2086 # one argument per port
set -- $PAIR_PORTS
first=$1
second=$2
for bin in /usr/lib/postgresql/*/bin; do PATH="$bin:$PATH"; done

as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

serve() {
    as_postgres postgres -D "$1" -p "$2" -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off \
        -c max_connections=100 &
    until pg_isready -q -h /tmp -p "$2" -U postgres; do sleep 0.1; done
}

install -d -o postgres -g postgres -m 0700 /tmp/first /tmp/second
install -o postgres -m 0600 /dev/null /tmp/secret
echo conformance > /tmp/secret
cd /tmp
as_postgres initdb --pgdata /tmp/first --username postgres --pwfile /tmp/secret --encoding UTF8 --locale C.UTF-8 \
    --auth-local trust --auth-host trust --no-sync
echo 'host all all all trust' >> /tmp/first/pg_hba.conf
echo 'CREATE DATABASE sessions' | as_postgres postgres --single -D /tmp/first postgres
serve /tmp/first "$first"
as_postgres pg_basebackup -h /tmp -p "$first" -U postgres -D /tmp/second -R --no-sync -c fast
serve /tmp/second "$second"
trap 'exit 0' INT TERM
wait
