//! The images of the servers.

/// A container image, and how to make a stand-in for it where no registry can be reached.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// The short name, as in `cargo xtask images NAME`.
    pub(crate) name: &'static str,
    /// The official image, pinned.
    pub(crate) official: &'static str,
    /// The environment variable that names another image to use instead.
    pub(crate) image_var: &'static str,
    /// The Debian release from which the stand-in is made.
    pub(crate) suite: &'static str,
    /// The Debian packages of the stand-in.
    pub(crate) packages: &'static [&'static str],
    /// Directories that the packages initialize at installation, and that would only be in the way.
    pub(crate) remove: &'static [&'static str],
    /// The stand-in's entry point, which gives the official image's meaning to arguments and environment.
    pub(crate) entrypoint: &'static str,
}

pub(crate) const REDIS: Image = Image {
    name: "redis",
    official: "redis:8.0.2",
    image_var: "CONFORMANCE_REDIS_IMAGE",
    suite: "trixie",
    packages: &["redis-server"],
    remove: &[],
    entrypoint: include_str!("redis.sh"),
};

pub(crate) const VALKEY: Image = Image {
    name: "valkey",
    official: "valkey/valkey:8.1.1",
    image_var: "CONFORMANCE_VALKEY_IMAGE",
    suite: "trixie",
    packages: &["valkey-server"],
    remove: &[],
    entrypoint: include_str!("redis.sh"),
};

pub(crate) const MEMCACHED: Image = Image {
    name: "memcached",
    official: "memcached:1.6.38",
    image_var: "CONFORMANCE_MEMCACHED_IMAGE",
    suite: "trixie",
    packages: &["memcached"],
    remove: &[],
    entrypoint: include_str!("memcached.sh"),
};

pub(crate) const POSTGRES: Image = Image {
    name: "postgres",
    official: "postgres:17.5",
    image_var: "CONFORMANCE_POSTGRES_IMAGE",
    suite: "trixie",
    packages: &["postgresql-17", "pgbouncer"],
    remove: &["/var/lib/postgresql"],
    entrypoint: include_str!("postgres.sh"),
};

pub(crate) const MYSQL: Image = Image {
    name: "mysql",
    official: "mysql:9.7.0",
    image_var: "CONFORMANCE_MYSQL_IMAGE",
    suite: "sid", // stable releases have MariaDB only
    packages: &["mysql-server"],
    remove: &["/var/lib/mysql"],
    entrypoint: include_str!("mysql.sh"),
};

pub(crate) const MARIADB: Image = Image {
    name: "mariadb",
    official: "mariadb:11.8.2",
    image_var: "CONFORMANCE_MARIADB_IMAGE",
    suite: "trixie",
    packages: &["mariadb-server"],
    remove: &["/var/lib/mysql"],
    entrypoint: include_str!("mariadb.sh"),
};

pub(crate) const IMAGES: &[&Image] = &[&REDIS, &VALKEY, &MEMCACHED, &POSTGRES, &MYSQL, &MARIADB];

impl Image {
    /// Returns the image to run: the one that the environment names, or else the official one.
    pub(crate) fn reference(&self) -> String {
        std::env::var(self.image_var).unwrap_or_else(|_| self.official.to_owned())
    }
}
