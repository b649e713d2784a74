# A primary and a replica that follows it, of MariaDB or MySQL, in one container, run by `sh -c` in the official images and in
# their stand-ins alike.
# PAIR_PORTS: the primary's and the replica's, each published under the same number.
# Replication is semi-synchronous: a commit waits until the replica has it. The user `app` may not write to a read-only server.
# The process ids are in the files named pid.
set -eu
# shellcheck disable=SC2086 # one argument per port
set -- $PAIR_PORTS
first=$1
second=$2

if command -v mariadbd > /dev/null; then
    server=mariadbd
    client=mariadb
    options=
    # Ten minutes, after which a primary would go on without its replica.
    as_primary='--rpl-semi-sync-master-enabled=ON --rpl-semi-sync-master-timeout=600000 --rpl-semi-sync-master-wait-point=AFTER_SYNC'
    as_replica='--rpl-semi-sync-slave-enabled=ON'
    follow="CHANGE MASTER TO master_host = '127.0.0.1', master_port = $first, master_user = 'root',
        master_password = 'conformance', master_use_gtid = slave_pos; START SLAVE; SET GLOBAL read_only = ON"
else
    server=mysqld
    client=mysql
    options='--mysqlx=OFF --gtid-mode=ON --enforce-gtid-consistency=ON'
    as_primary='--plugin-load-add=semisync_source.so --rpl-semi-sync-source-enabled=ON --rpl-semi-sync-source-timeout=600000'
    as_replica='--plugin-load-add=semisync_replica.so --rpl-semi-sync-replica-enabled=ON'
    follow="CHANGE REPLICATION SOURCE TO source_host = '127.0.0.1', source_port = $first, source_user = 'root',
        source_password = 'conformance', source_auto_position = 1, get_source_public_key = 1; START REPLICA;
        SET GLOBAL super_read_only = ON"
fi

ask() { "$client" --no-defaults --socket="/tmp/$1/mysqld.sock" --user=root --password=conformance; }

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
    # shellcheck disable=SC2086 # several options
    "$server" --no-defaults --user=mysql --datadir="/tmp/$name" --socket="/tmp/$name/mysqld.sock" \
        --pid-file="/tmp/$name/pid" --port="$port" --server-id="$id" --log-bin=binlog --binlog-format=ROW \
        --innodb-flush-log-at-trx-commit=0 --max-connect-errors=1000000 --init-file="/tmp/$name.sql" $options "$@" &
    until echo 'SELECT 1' | ask "$name" > /dev/null 2>&1; do sleep 0.1; done
}

install -d -o mysql -g mysql -m 0750 /tmp/first
if [ "$server" = mariadbd ]; then
    mariadb-install-db --no-defaults --user=mysql --datadir=/tmp/first --skip-test-db --auth-root-authentication-method=normal
else
    mysqld --no-defaults --user=mysql --datadir=/tmp/first --initialize-insecure
    # Each makes an identity of its own when it starts.
    rm -f /tmp/first/auto.cnf
fi
cp -a /tmp/first /tmp/second
# shellcheck disable=SC2086 # several options
serve first "$first" 1 $as_primary
# shellcheck disable=SC2086 # several options
serve second "$second" 2 $as_replica
echo "$follow" | ask second
trap 'exit 0' INT TERM
wait
