#!/bin/sh
# Entry point of the mariadb stand-in. Honours what the suite uses of the official image's environment:
#   MARIADB_ROOT_PASSWORD   the password of root, from everywhere (required)
#   MARIADB_DATABASE        a database to create
#   no arguments, or options only   run mariadbd with them
#   mariadbd …                      create the data directory if it is missing, then run it as user mysql
#   anything else                   run that
set -eu

case "${1:-}" in
    '' | -*) set -- mariadbd "$@" ;;
esac
[ "$1" = mariadbd ] || exec "$@"
shift

: "${MARIADB_ROOT_PASSWORD:?must be set}"
data=/var/lib/mysql
install -d -o mysql -g mysql -m 0755 /run/mysqld
install -d -o mysql -g mysql -m 0750 "$data"

if [ ! -d "$data/mysql" ]; then
    mariadb-install-db --no-defaults --user=mysql --datadir="$data" --skip-test-db \
        --auth-root-authentication-method=normal
fi

# Runs before the server accepts connections, and may run again.
init=/run/mysqld/init.sql
password=$(printf %s "$MARIADB_ROOT_PASSWORD" | sed "s/'/''/g")
cat > "$init" <<SQL
ALTER USER 'root'@'localhost' IDENTIFIED BY '$password';
CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY '$password';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;
SQL
if [ -n "${MARIADB_DATABASE:-}" ]; then
    echo "CREATE DATABASE IF NOT EXISTS \`$MARIADB_DATABASE\`;" >> "$init"
fi
chown mysql "$init"
chmod 0600 "$init"
# The package's own settings bind to loopback.
exec mariadbd --no-defaults --user=mysql --datadir="$data" --socket=/run/mysqld/mysqld.sock \
    --pid-file=/run/mysqld/mysqld.pid "$@" --init-file="$init"
