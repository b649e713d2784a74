# A server that demands TLS and a client's certificate, run by `sh -c` in the official image and in its stand-in alike. By the
# socket in /tls it demands neither.
set -eu
for bin in /usr/lib/postgresql/*/bin; do PATH="$bin:$PATH"; done

as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

install -d -o postgres -g postgres -m 0700 /tmp/data
install -o postgres -m 0600 /tls/key.pem /tmp/key.pem
install -o postgres -m 0600 /dev/null /tmp/secret
echo conformance > /tmp/secret
cd /tmp
as_postgres initdb --pgdata /tmp/data --username postgres --pwfile /tmp/secret --encoding UTF8 --locale C.UTF-8 --no-sync
{
    echo 'local all all trust'
    echo 'hostssl all all all scram-sha-256 clientcert=verify-ca'
} > /tmp/data/pg_hba.conf
echo 'CREATE DATABASE sessions' | as_postgres postgres --single -D /tmp/data postgres
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -D /tmp/data -c listen_addresses='*' -c fsync=off \
    -c unix_socket_directories=/tls -c ssl=on -c ssl_ca_file=/tls/ca.pem -c ssl_cert_file=/tls/cert.pem -c ssl_key_file=/tmp/key.pem
