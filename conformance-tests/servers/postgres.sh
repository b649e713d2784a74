#!/bin/sh
# Entry point of the postgres stand-in. Honours what the suite uses of the official image's environment:
#   POSTGRES_PASSWORD   the superuser's password (required)
#   POSTGRES_USER       the superuser, "postgres" if not set
#   POSTGRES_DB         the database to create, named like the user if not set
#   no arguments, or options only   run postgres with them
#   postgres …                      create the cluster if it is missing, then run it as user postgres
#   anything else                   run that
set -eu

bin=$(echo /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/data
PATH="$bin:$PATH"

case "${1:-}" in
    '' | -*) set -- postgres "$@" ;;
esac
[ "$1" = postgres ] || exec "$@"

as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

: "${POSTGRES_PASSWORD:?must be set}"
user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}
install -d -o postgres -g postgres -m 2775 /var/run/postgresql
install -d -o postgres -g postgres -m 0700 "$data"

if [ ! -e "$data/PG_VERSION" ]; then
    secret=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" > "$secret"
    chown postgres "$secret"
    as_postgres initdb --pgdata "$data" --username "$user" --pwfile "$secret" --encoding UTF8 --locale C.UTF-8 \
        --auth-local trust --auth-host scram-sha-256 --no-sync
    rm "$secret"
    echo 'host all all all scram-sha-256' >> "$data/pg_hba.conf"
    if [ "$database" != postgres ]; then
        echo "CREATE DATABASE \"$database\"" | as_postgres postgres --single -D "$data" postgres
    fi
fi

shift
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -D "$data" -c listen_addresses='*' "$@"
