# A server behind PgBouncer in transaction mode, in one container, run by `sh -c` in the official image and in its stand-in
# alike. PgBouncer follows prepared statements, as it can from 1.21 on. Logins are not checked: in an unoptimized build, the
# driver computes a SCRAM proof for long.
set -eu
for bin in /usr/lib/postgresql/*/bin; do PATH="$bin:$PATH"; done
# The official image comes without it, and knows where its package is.
command -v pgbouncer > /dev/null || {
    apt-get update -q
    apt-get install -q -y --no-install-recommends pgbouncer
}

as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

install -d -o postgres -g postgres -m 0700 /tmp/data
cd /tmp
as_postgres initdb --pgdata /tmp/data --username postgres --auth trust --encoding UTF8 --locale C.UTF-8 --no-sync
echo 'CREATE DATABASE sessions' | as_postgres postgres --single -D /tmp/data postgres
as_postgres postgres -D /tmp/data -c listen_addresses= -c unix_socket_directories=/tmp -c max_connections=100 -c fsync=off &
until pg_isready -q -h /tmp -U postgres; do sleep 0.1; done
echo '"postgres" ""' > /tmp/users
cat > /tmp/pgbouncer.ini << INI
[databases]
* = host=/tmp
[pgbouncer]
listen_addr = *
listen_port = 5432
unix_socket_dir =
auth_type = trust
auth_file = /tmp/users
pool_mode = transaction
max_prepared_statements = 100
default_pool_size = 40
max_client_conn = 2000
ignore_startup_parameters = extra_float_digits
INI
trap 'exit 0' INT TERM
as_postgres "$(command -v pgbouncer)" -q /tmp/pgbouncer.ini &
wait
