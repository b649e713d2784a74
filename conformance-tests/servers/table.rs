//! The servers that the conformance matrix runs on: images, how to start them, how to reach them.
//!
//! This is the one table behind the tests, `cargo xtask images`, `cargo xtask services` and CI. It uses only
//! the standard library, because two crates include it by path: the tests of this crate and `xtask`, which
//! must compile fast.

mod beside;
mod images;
mod probe;

pub(crate) use self::beside::BESIDE_THE_MATRIX;
#[allow(unused_imports, reason = "each crate that includes this file uses some of them")]
pub(crate) use self::images::{IMAGES, Image, MARIADB, MEMCACHED, MYSQL, POSTGRES, REDIS, VALKEY};
use self::probe::{MYSQL_GREETING, PG_OPEN, PG_STARTUP, PING, Probe, TLS_ALERT, VERSION};

/// The caches of the matrix. A cache without a [`Server`] of its name lives in the process.
pub(crate) const CACHES: &[&str] = &["moka", "redis", "valkey", "redis-cluster", "memcached"];

/// The databases of the matrix. A database without a [`Server`] of its name lives in the process.
pub(crate) const DATABASES: &[&str] = &["sqlite", "postgres", "mysql", "mariadb"];

/// Variants of databases that are held to the whole contract by themselves, too: what stands before the server changes
/// what a statement is.
pub(crate) const VARIANT_DATABASES: &[&str] = &["postgres-pooler"];

/// Pairs of variants, whose servers differ in how they are reached. Each is tested like a pair of the matrix.
pub(crate) const VARIANT_PAIRS: &[(&str, &str)] = &[
    ("redis-acl", "postgres-pooler"),
    ("redis-tls", "postgres-tls"),
    ("redis-socket", "mysql"),
    ("redis-sentinel", "sqlite"),
    ("redis-sentinel-tls", "sqlite"),
    ("memcached-two", "mariadb"),
];

/// Pairs of near caches. Behind `near+` is the server of the shared cache; [`NOTIFIED`] has none.
pub(crate) const NEAR_PAIRS: &[(&str, &str)] = &[
    ("near+redis", "sqlite"),
    ("near+redis", "postgres"),
    ("near+redis", "mysql"),
    ("near+redis", "mariadb"),
    ("near+valkey", "sqlite"),
    ("near+valkey", "postgres"),
    ("near+valkey", "mysql"),
    ("near+valkey", "mariadb"),
    ("near+redis-cluster", "postgres"),
    ("near+redis-cluster", "mysql"),
    ("near+valkey-cluster", "mysql"),
    ("near+redis-tls", "postgres-tls"),
    ("near+redis-sentinel", "sqlite"),
    ("near+redis-sentinel-tls", "sqlite"),
    (NOTIFIED, "postgres"),
];

/// Memory of each process that the database tells of changes.
pub(crate) const NOTIFIED: &str = "notified+moka";

/// The prefix of the name of a server whose cache is a near one.
pub(crate) const NEAR: &str = "near+";

/// The mapping of the ports of a server in its container to ports of 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// The server listens on this port, and any free port outside leads to it.
    Mapped(u16),
    /// This many free ports are chosen outside first, and the server listens on the same numbers inside.
    /// Their numbers plus 10000 must not exceed 65535.
    OneToOne(u16),
    /// The server is not reached by TCP.
    None,
}

/// The files that must be put into the container before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// A directory from outside that every user can write to is mounted here. The server makes its socket in
    /// it.
    SocketDirectory(&'static str),
    /// `ca.pem`, `cert.pem` and `key.pem`, readable for every user, are in this directory.
    Certificates(&'static str),
}

/// A server as the tests and `cargo xtask services` start it. Everything here means the same to the official
/// image and to its stand-in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// The backend's name in the matrix, or that of a variant that has a pair of its own.
    pub(crate) name: &'static str,
    pub(crate) image: &'static Image,
    /// The environment of the container. `{ports}` stands for the chosen ports, separated by spaces.
    pub(crate) env: &'static [(&'static str, &'static str)],
    /// The command, including the entry point if the image has one.
    pub(crate) command: &'static [&'static str],
    pub(crate) ports: Ports,
    pub(crate) needs: Needs,
    /// The URL of the server. `{addresses}` stands for every `127.0.0.1:port`, separated by commas,
    /// `{sentinels}` for the same without the first two, `{socket}` for the socket directory outside,
    /// `{certificates}` for that of the certificates.
    pub(crate) url: &'static str,
    /// The environment variable that names a running server to use instead of a container.
    pub(crate) url_var: &'static str,
    /// The port on which `cargo xtask services` publishes it (the first of them, when one to one). If `None`,
    /// it is not kept running there.
    pub(crate) service_port: Option<u16>,
    /// The exchange over plain TCP that shows that it is ready.
    pub(crate) probe: Option<Probe>,
}

// Servers have lines alike: each states all that it is, so that one is read, and changed, by itself.
pub(crate) const SERVERS: &[Server] = &[
    Server {
        name: "redis",
        image: &REDIS,
        env: &[],
        command: &["redis-server", "--save", "", "--appendonly", "no"],
        ports: Ports::Mapped(6379),
        needs: Needs::Nothing,
        url: "redis://{addresses}/",
        url_var: "CONFORMANCE_REDIS_URL",
        service_port: Some(16379),
        probe: Some(PING),
    },
    Server {
        name: "valkey",
        image: &VALKEY,
        env: &[],
        command: &["valkey-server", "--save", "", "--appendonly", "no"],
        ports: Ports::Mapped(6379),
        needs: Needs::Nothing,
        url: "redis://{addresses}/",
        url_var: "CONFORMANCE_VALKEY_URL",
        service_port: Some(16380),
        probe: Some(PING),
    },
    Server {
        name: "redis-cluster",
        image: &REDIS,
        env: &[("CLUSTER_PORTS", "{ports}")],
        command: &["sh", "-c", include_str!("redis-cluster.sh")],
        ports: Ports::OneToOne(3),
        needs: Needs::Nothing,
        url: "redis+cluster://{addresses}/",
        url_var: "CONFORMANCE_REDIS_CLUSTER_URL",
        service_port: Some(17000),
        probe: Some(Probe { send: b"CLUSTER INFO\r\n", expect: b"cluster_state:ok" }),
    },
    Server {
        name: "valkey-cluster",
        image: &VALKEY,
        env: &[("CLUSTER_PORTS", "{ports}"), ("CLUSTER_PROGRAM", "valkey")],
        command: &["sh", "-c", include_str!("redis-cluster.sh")],
        ports: Ports::OneToOne(3),
        needs: Needs::Nothing,
        url: "redis+cluster://{addresses}/",
        url_var: "CONFORMANCE_VALKEY_CLUSTER_URL",
        service_port: None,
        probe: Some(Probe { send: b"CLUSTER INFO\r\n", expect: b"cluster_state:ok" }),
    },
    Server {
        name: "redis-acl",
        image: &REDIS,
        env: &[],
        command: &[
            "redis-server",
            "--save",
            "",
            "--requirepass",
            "conformance",
            "--user",
            "sessions",
            "on",
            ">conformance",
            "~*",
            "&*",
            "+@all",
        ],
        ports: Ports::Mapped(6379),
        needs: Needs::Nothing,
        url: "redis://sessions:conformance@{addresses}/",
        url_var: "CONFORMANCE_REDIS_ACL_URL",
        service_port: None,
        probe: Some(Probe { send: b"AUTH sessions conformance\r\n", expect: b"+OK" }),
    },
    Server {
        name: "redis-tls",
        image: &REDIS,
        env: &[],
        command: &[
            "redis-server",
            "--save",
            "",
            "--port",
            "0",
            "--tls-port",
            "6379",
            // Clients must show a certificate.
            "--tls-auth-clients",
            "yes",
            "--tls-ca-cert-file",
            "/tls/ca.pem",
            "--tls-cert-file",
            "/tls/cert.pem",
            "--tls-key-file",
            "/tls/key.pem",
        ],
        ports: Ports::Mapped(6379),
        needs: Needs::Certificates("/tls"),
        url: "rediss://{addresses}/?root_certificates={certificates}/ca.pem&client_certificate={certificates}/cert.pem&\
              client_key={certificates}/key.pem",
        url_var: "CONFORMANCE_REDIS_TLS_URL",
        service_port: None,
        probe: Some(TLS_ALERT),
    },
    Server {
        name: "redis-socket",
        image: &REDIS,
        env: &[],
        command: &[
            "redis-server",
            "--save",
            "",
            "--port",
            "0",
            "--unixsocket",
            "/socket/redis.sock",
            "--unixsocketperm",
            "777",
        ],
        ports: Ports::None,
        needs: Needs::SocketDirectory("/socket"),
        url: "redis+unix://{socket}/redis.sock",
        url_var: "CONFORMANCE_REDIS_SOCKET_URL",
        service_port: None,
        probe: None,
    },
    Server {
        name: "redis-sentinel",
        image: &REDIS,
        env: &[("SENTINEL_PORTS", "{ports}")],
        command: &["sh", "-c", include_str!("redis-sentinel.sh")],
        ports: Ports::OneToOne(5),
        needs: Needs::Nothing,
        url: "redis+sentinel://{sentinels}/sessions",
        url_var: "CONFORMANCE_REDIS_SENTINEL_URL",
        service_port: None,
        probe: Some(PING),
    },
    Server {
        name: "redis-sentinel-tls",
        image: &REDIS,
        env: &[("SENTINEL_PORTS", "{ports}")],
        command: &["sh", "-c", include_str!("redis-sentinel.sh")],
        ports: Ports::OneToOne(5),
        needs: Needs::Certificates("/tls"),
        url: "rediss+sentinel://sessions:conformance@{sentinels}/sessions?sentinel_password=watching&\
              root_certificates={certificates}/ca.pem",
        url_var: "CONFORMANCE_REDIS_SENTINEL_TLS_URL",
        service_port: None,
        probe: None,
    },
    Server {
        name: "memcached",
        image: &MEMCACHED,
        env: &[],
        command: &["memcached", "-m", "256", "-c", "4096"],
        ports: Ports::Mapped(11211),
        needs: Needs::Nothing,
        url: "memcache://{addresses}",
        url_var: "CONFORMANCE_MEMCACHED_URL",
        service_port: Some(21211),
        probe: Some(VERSION),
    },
    Server {
        name: "memcached-two",
        image: &MEMCACHED,
        env: &[("MEMCACHED_PORTS", "{ports}")],
        command: &["sh", "-c", include_str!("memcached-several.sh")],
        ports: Ports::OneToOne(2),
        needs: Needs::Nothing,
        url: "memcache://{addresses}",
        url_var: "CONFORMANCE_MEMCACHED_TWO_URL",
        service_port: None,
        probe: Some(VERSION),
    },
    Server {
        name: "postgres",
        image: &POSTGRES,
        env: &[("POSTGRES_PASSWORD", "conformance"), ("POSTGRES_DB", "sessions")],
        // The data is thrown away, so nothing needs to reach the disk.
        command: &["postgres", "-c", "max_connections=500", "-c", "fsync=off"],
        ports: Ports::Mapped(5432),
        needs: Needs::Nothing,
        url: "postgres://postgres:conformance@{addresses}/sessions",
        url_var: "CONFORMANCE_POSTGRES_URL",
        service_port: Some(15432),
        probe: Some(PG_STARTUP),
    },
    Server {
        name: "postgres-tls",
        image: &POSTGRES,
        env: &[("POSTGRES_PASSWORD", "conformance"), ("POSTGRES_DB", "sessions")],
        // Both images carry this self-signed certificate.
        command: &[
            "postgres",
            "-c",
            "max_connections=500",
            "-c",
            "fsync=off",
            "-c",
            "ssl=on",
            "-c",
            "ssl_cert_file=/etc/ssl/certs/ssl-cert-snakeoil.pem",
            "-c",
            "ssl_key_file=/etc/ssl/private/ssl-cert-snakeoil.key",
        ],
        ports: Ports::Mapped(5432),
        needs: Needs::Nothing,
        url: "postgres://postgres:conformance@{addresses}/sessions?sslmode=require",
        url_var: "CONFORMANCE_POSTGRES_TLS_URL",
        service_port: None,
        probe: Some(PG_STARTUP),
    },
    Server {
        name: "postgres-pooler",
        image: &POSTGRES,
        env: &[],
        command: &["sh", "-c", include_str!("postgres-pooler.sh")],
        ports: Ports::Mapped(5432),
        needs: Needs::Nothing,
        url: "postgres://postgres:conformance@{addresses}/sessions",
        url_var: "CONFORMANCE_POSTGRES_POOLER_URL",
        service_port: None,
        probe: Some(PG_OPEN),
    },
    Server {
        name: "mysql",
        image: &MYSQL,
        env: &[("MYSQL_ROOT_PASSWORD", "conformance"), ("MYSQL_DATABASE", "sessions")],
        command: &["mysqld", "--max-connections=500", "--skip-log-bin", "--innodb-flush-log-at-trx-commit=0"],
        ports: Ports::Mapped(3306),
        needs: Needs::Nothing,
        url: "mysql://root:conformance@{addresses}/sessions",
        url_var: "CONFORMANCE_MYSQL_URL",
        service_port: Some(13306),
        probe: Some(MYSQL_GREETING),
    },
    Server {
        name: "mariadb",
        image: &MARIADB,
        env: &[("MARIADB_ROOT_PASSWORD", "conformance"), ("MARIADB_DATABASE", "sessions")],
        command: &["mariadbd", "--max-connections=500", "--innodb-flush-log-at-trx-commit=0"],
        ports: Ports::Mapped(3306),
        needs: Needs::Nothing,
        url: "mysql://root:conformance@{addresses}/sessions",
        url_var: "CONFORMANCE_MARIADB_URL",
        service_port: Some(13307),
        probe: Some(MYSQL_GREETING),
    },
];

/// A cluster that serves its other keys when a master is missing, for the soak, which kills one.
pub(crate) const CLUSTER_WITH_GAPS: Server = Server {
    name: "redis-cluster-with-gaps",
    image: &REDIS,
    env: &[("CLUSTER_PORTS", "{ports}"), ("CLUSTER_FULL_COVERAGE", "no")],
    command: &["sh", "-c", include_str!("redis-cluster.sh")],
    ports: Ports::OneToOne(3),
    needs: Needs::Nothing,
    url: "redis+cluster://{addresses}/",
    url_var: "CONFORMANCE_REDIS_CLUSTER_WITH_GAPS_URL",
    service_port: None,
    probe: Some(Probe { send: b"CLUSTER INFO\r\n", expect: b"cluster_state:ok" }),
};

/// Returns the server of this name, or `None` for a backend that lives in the process. The server of a near cache is
/// that of the shared one.
pub(crate) fn server(name: &str) -> Option<&'static Server> {
    let name = name.strip_prefix(NEAR).unwrap_or(name);
    SERVERS.iter().chain(BESIDE_THE_MATRIX).find(|server| server.name == name)
}

impl Server {
    /// Returns the environment of a container whose server listens on `ports`.
    pub(crate) fn env_on(&self, ports: &[u16]) -> Vec<(&'static str, String)> {
        let ports = joined(ports, " ", u16::to_string);
        self.env.iter().map(|(name, value)| (*name, value.replace("{ports}", &ports))).collect()
    }

    /// Returns the URL of a server that is reached on these ports of 127.0.0.1.
    pub(crate) fn url_on(&self, ports: &[u16]) -> String {
        let addresses = |ports| joined(ports, ",", |port| format!("127.0.0.1:{port}"));
        let sentinels = ports.get(2..).unwrap_or_default();
        self.url.replace("{addresses}", &addresses(ports)).replace("{sentinels}", &addresses(sentinels))
    }
}

fn joined(ports: &[u16], separator: &str, shape: impl Fn(&u16) -> String) -> String {
    ports.iter().map(shape).collect::<Vec<_>>().join(separator)
}
