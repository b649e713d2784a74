#!/bin/sh
# Entry point of the mysql stand-in. Honours what the suite uses of the official image's environment:
#   MYSQL_ROOT_PASSWORD   the password of root, from everywhere (required)
#   MYSQL_DATABASE        a database to create
#   no arguments, or options only   run mysqld with them
#   mysqld …                        create the data directory if it is missing, then run it as user mysql
#   anything else                   run that
set -eu

case "${1:-}" in
    '' | -*) set -- mysqld "$@" ;;
esac
[ "$1" = mysqld ] || exec "$@"
shift

: "${MYSQL_ROOT_PASSWORD:?must be set}"
data=/var/lib/mysql
install -d -o mysql -g mysql -m 0755 /var/run/mysqld
install -d -o mysql -g mysql -m 0750 "$data"
# The package's own settings bind to loopback and log to a file.
set -- mysqld --no-defaults --user=mysql --datadir="$data" --socket=/var/run/mysqld/mysqld.sock \
    --pid-file=/var/run/mysqld/mysqld.pid "$@"

if [ ! -d "$data/mysql" ]; then
    "$@" --initialize-insecure
fi

# Runs before the server accepts connections, and may run again.
init=/var/run/mysqld/init.sql
password=$(printf %s "$MYSQL_ROOT_PASSWORD" | sed "s/'/''/g")
cat > "$init" <<SQL
ALTER USER 'root'@'localhost' IDENTIFIED BY '$password';
CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY '$password';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;
SQL
if [ -n "${MYSQL_DATABASE:-}" ]; then
    echo "CREATE DATABASE IF NOT EXISTS \`$MYSQL_DATABASE\`;" >> "$init"
fi
chown mysql "$init"
chmod 0600 "$init"
exec "$@" --init-file="$init"
