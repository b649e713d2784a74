# A Galera cluster of MariaDB in one container, run by `sh -c` in the official image and in its stand-in alike.
# GALERA_PORTS: the port of each node, published under the same number. A node talks to the others on ports next to that
# number plus 10000.
# MARIADB_ROOT_PASSWORD, MARIADB_DATABASE: as for a single server.
#
# The first node makes the users; the others get all of its data.
set -eu

provider=$(ls /usr/lib/galera/libgalera_smm.so /usr/lib/libgalera_smm.so 2> /dev/null | head -n 1)
first=/tmp/first
mariadb-install-db --no-defaults --innodb-log-file-size=8M --user=mysql --datadir="$first" --skip-test-db \
    --auth-root-authentication-method=normal > /dev/null
{
    echo "ALTER USER 'root'@'localhost' IDENTIFIED BY '$MARIADB_ROOT_PASSWORD';"
    echo "CREATE USER 'root'@'%' IDENTIFIED BY '$MARIADB_ROOT_PASSWORD';"
    echo "GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;"
    echo "CREATE DATABASE \`$MARIADB_DATABASE\`;"
} > /tmp/init.sql
# A server without network makes the users, and ends.
{
    echo 'FLUSH PRIVILEGES;'
    cat /tmp/init.sql
} | mariadbd --no-defaults --innodb-log-file-size=8M --user=mysql --datadir="$first" --bootstrap > /dev/null 2>&1
members=
for port in $GALERA_PORTS; do
    members="$members,127.0.0.1:$((port + 10000))"
done
members=${members#,}

node() {
    port=$1
    data=/tmp/node-$port
    if [ "$2" = new ]; then mv "$first" "$data"; else mkdir "$data"; fi
    chown -R mysql "$data"
    # The ports of the group, and of what a node is sent when it joins.
    group=$((port + 10000))
    # A program that waits for the cluster connects and leaves, for which a server would block its host.
    cluster="gcomm://$members"
    if [ "$2" = new ]; then cluster=gcomm://; fi
    exec mariadbd --no-defaults --user=mysql --datadir="$data" --socket="$data/mysqld.sock" --pid-file="$data/pid" \
        --port="$port" --bind-address=0.0.0.0 --max-connections=300 --max-connect-errors=1000000 --innodb-flush-log-at-trx-commit=0 \
        --innodb-buffer-pool-size=32M --innodb-log-file-size=8M --innodb-autoinc-lock-mode=2 --binlog-format=ROW \
        --wsrep-on=ON --wsrep-provider="$provider" --wsrep-cluster-address="$cluster" --wsrep-sst-method=rsync \
        --wsrep-node-address="127.0.0.1:$group" --wsrep-node-name="node-$port" \
        --wsrep-provider-options="base_port=$group;gmcast.listen_addr=tcp://127.0.0.1:$group;ist.recv_addr=127.0.0.1:$((group + 5000));gcache.size=32M;pc.recovery=false" \
        --wsrep-sst-receive-address="127.0.0.1:$((group + 10000))"
}

kind=new
for port in $GALERA_PORTS; do
    node "$port" "$kind" &
    kind=joining
    until mariadb --no-defaults -h 127.0.0.1 -P "$port" -u root -p"$MARIADB_ROOT_PASSWORD" -N \
        -e "SHOW STATUS LIKE 'wsrep_ready'" 2> /dev/null | grep -q ON; do
        sleep 0.2
    done
done
echo 'the cluster is complete'
wait
