# A primary and a replica that follows it, in one container, run by `sh -c` in the official image and in its stand-in alike.
# PAIR_PORTS: the primary's and the replica's, each published under the same number.
# Replication is semi-synchronous: a commit waits until the replica has it. The user `app` may not write to a read-only server.
set -eu
# shellcheck disable=SC2086 # one argument per port
set -- $PAIR_PORTS
first=$1
second=$2

install -d -o mysql -g mysql -m 0750 /tmp/first
mariadb-install-db --no-defaults --user=mysql --datadir=/tmp/first --skip-test-db --auth-root-authentication-method=normal
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
    mariadbd --no-defaults --user=mysql --datadir="/tmp/$name" --socket="/tmp/$name.sock" --pid-file="/tmp/$name.pid" \
        --port="$port" --server-id="$id" --log-bin=binlog --binlog-format=ROW --innodb-flush-log-at-trx-commit=0 \
        --init-file="/tmp/$name.sql" "$@" &
    until echo 'SELECT 1' | mariadb --no-defaults --socket="/tmp/$name.sock" --user=root --password=conformance \
        > /dev/null 2>&1; do sleep 0.1; done
}

serve first "$first" 1 --rpl-semi-sync-master-enabled=ON --rpl-semi-sync-master-timeout=600000 \
    --rpl-semi-sync-master-wait-point=AFTER_SYNC
serve second "$second" 2 --read-only=ON --rpl-semi-sync-slave-enabled=ON
mariadb --no-defaults --socket=/tmp/second.sock --user=root --password=conformance << SQL
CHANGE MASTER TO master_host = '127.0.0.1', master_port = $first, master_user = 'root',
    master_password = 'conformance', master_use_gtid = slave_pos;
START SLAVE;
SQL
trap 'exit 0' INT TERM
wait
