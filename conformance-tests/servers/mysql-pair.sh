# A primary and a replica that follows it, in one container, run by `sh -c` in the official image and in its stand-in alike.
# PAIR_PORTS: the primary's and the replica's, each published under the same number.
# Replication is asynchronous. The user `app` may not write to a read-only server.
set -eu
# shellcheck disable=SC2086 # one argument per port
set -- $PAIR_PORTS
first=$1
second=$2

ask() { mysql --no-defaults --socket="/tmp/$1.sock" --user=root --password=conformance; }

install -d -o mysql -g mysql -m 0750 /tmp/first
mysqld --no-defaults --user=mysql --datadir=/tmp/first --initialize-insecure
# Each makes an identity of its own when it starts.
rm -f /tmp/first/auto.cnf
cp -a /tmp/first /tmp/second

serve() {
    name=$1 port=$2 id=$3
    shift 3
    cat > "/tmp/$name.sql" << SQL
SET sql_log_bin = 0;
ALTER USER 'root'@'localhost' IDENTIFIED BY 'conformance';
CREATE USER 'root'@'%' IDENTIFIED BY 'conformance';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;
CREATE USER 'app'@'%' IDENTIFIED BY 'conformance';
CREATE DATABASE sessions;
GRANT ALL PRIVILEGES ON sessions.* TO 'app'@'%';
SQL
    chown mysql "/tmp/$name.sql"
    mysqld --no-defaults --user=mysql --datadir="/tmp/$name" --socket="/tmp/$name.sock" --pid-file="/tmp/$name.pid" \
        --port="$port" --mysqlx=OFF --server-id="$id" --log-bin=binlog --gtid-mode=ON --enforce-gtid-consistency=ON \
        --innodb-flush-log-at-trx-commit=0 --init-file="/tmp/$name.sql" "$@" &
    until echo 'SELECT 1' | ask "$name" > /dev/null 2>&1; do sleep 0.1; done
}

serve first "$first" 1
serve second "$second" 2
ask second << SQL
CHANGE REPLICATION SOURCE TO source_host = '127.0.0.1', source_port = $first, source_user = 'root',
    source_password = 'conformance', source_auto_position = 1, get_source_public_key = 1;
START REPLICA;
SET GLOBAL super_read_only = ON;
SQL
trap 'exit 0' INT TERM
wait
