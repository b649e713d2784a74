//! Servers that demand TLS and certificates, and sockets of databases.

use conformance_tests::proxy::Proxy;
use db_backends::ConnectError;
use db_backends::sqlx::{Connection as _, MySqlConnection, raw_sql};
use session_core::{CacheError, PersistenceError};

use crate::{Link, Links, address, trouble};

/// The parts of a URL with certificates.
struct Secured {
    /// The URL without its parameters.
    base: String,
    /// The directory of the certificates, and of the server's socket.
    directory: String,
}

impl Secured {
    fn new(link: &Link) -> Self {
        let (base, parameters) = link.direct.split_once('?').unwrap();
        let root = parameters.split('&').find(|pair| pair.ends_with("ca.pem")).unwrap();
        let directory = root.split_once('=').unwrap().1.trim_end_matches("/ca.pem");
        Self { base: base.to_owned(), directory: directory.to_owned() }
    }

    /// Returns a URL of the server, with these parameters.
    fn url(&self, base: &str, parameters: &str) -> String {
        format!("{base}?{}", parameters.replace("{d}", &self.directory))
    }

    async fn connect(&self, base: &str, parameters: &str) -> Result<(), ConnectError> {
        let db = db_backends::connect(&self.url(base, parameters)).await?;
        db.now_dyn().await.expect("an open connection answers");
        Ok(())
    }

    /// Checks that a connection is refused, and that the error says why.
    async fn is_refused(&self, base: &str, parameters: &str, reason: &str) {
        let error = self.connect(base, parameters).await.expect_err(parameters);
        assert!(error.to_string().contains(reason), "{parameters}: {error}");
        let is_unavailable = matches!(error, ConnectError::Database(PersistenceError::Unavailable(_)));
        assert!(is_unavailable, "{parameters}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("conformance"), "{error:?}");
    }

    /// Writes the certificate of an authority that the server's is not from, and returns its path.
    fn foreign_root(&self) -> String {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let path = format!("{}/foreign.pem", self.directory);
        std::fs::write(&path, made.cert.pem()).unwrap();
        path
    }

    /// Returns the URL of an address that the certificate is not for.
    fn elsewhere(&self) -> String {
        self.base.replace("127.0.0.1", "127.0.0.2")
    }

    /// Returns the URL of an IPv6 address that the certificate is for.
    async fn by_ipv6(&self) -> String {
        let server = address(&self.base);
        let proxy = Proxy::at("[::1]:0".parse().unwrap(), server).await.expect("this machine has IPv6");
        self.base.replace(&server.to_string(), &proxy.address().to_string())
    }
}

pub async fn postgres_is_verified_and_shown_a_certificate(links: &Links) {
    let secured = Secured::new(links.only());
    let base = &secured.base;
    let shown = "sslcert={d}/cert.pem&sslkey={d}/key.pem";
    let verified = format!("sslmode=verify-full&sslrootcert={{d}}/ca.pem&{shown}");
    secured.connect(base, &verified).await.unwrap();
    secured.connect(&secured.by_ipv6().await, &verified).await.unwrap();
    secured.is_refused(base, "sslmode=verify-full&sslrootcert={d}/ca.pem", "certificate").await;
    let foreign = secured.foreign_root();
    secured
        .is_refused(
            base,
            &format!("sslmode=verify-full&sslrootcert={foreign}&{shown}"),
            "invalid peer certificate",
        )
        .await;
    // The certificate is not for this address, which only verify-full minds.
    let other = secured.elsewhere();
    secured.is_refused(&other, &verified, "not valid for name").await;
    secured.connect(&other, &verified.replace("verify-full", "verify-ca")).await.unwrap();

    let socket = secured.directory.replace('/', "%2F");
    secured.connect(&format!("postgres://postgres@{socket}/sessions"), "").await.unwrap();
    secured.connect("postgres://postgres@localhost/sessions", "host={d}").await.unwrap();
}

async fn mysql_or_mariadb_is_verified(link: &Link) {
    let secured = Secured::new(link);
    let base = &secured.base;
    let shown = "ssl-cert={d}/cert.pem&ssl-key={d}/key.pem";
    let verified = format!("ssl-mode=verify_identity&ssl-ca={{d}}/ca.pem&{shown}");
    secured.connect(base, &verified).await.unwrap();
    secured.connect(&secured.by_ipv6().await, &verified).await.unwrap();
    let foreign = secured.foreign_root();
    secured
        .is_refused(
            base,
            &format!("ssl-mode=verify_identity&ssl-ca={foreign}&{shown}"),
            "invalid peer certificate",
        )
        .await;
    let other = secured.elsewhere();
    secured.is_refused(&other, &verified, "not valid for name").await;
    secured.connect(&other, &verified.replace("verify_identity", "verify_ca")).await.unwrap();

    // From here on, this user has to show a certificate, except by the socket, where the user is another one.
    let mut admin = MySqlConnection::connect(base).await.unwrap();
    let require = "ALTER USER 'root'@'%' REQUIRE X509";
    raw_sql(require).execute(&mut admin).await.unwrap();
    secured.connect(base, &verified).await.unwrap();
    secured.is_refused(base, "ssl-mode=verify_identity&ssl-ca={d}/ca.pem", "Access denied").await;
    secured.connect("mysql://root:conformance@localhost/sessions", "socket={d}/mysql.sock").await.unwrap();
}

pub async fn mysql_is_verified_and_shown_a_certificate(links: &Links) {
    mysql_or_mariadb_is_verified(links.only()).await;
}

pub async fn mariadb_is_verified_and_shown_a_certificate(links: &Links) {
    mysql_or_mariadb_is_verified(links.only()).await;
}

/// The server demands a certificate of every client.
async fn redis_or_valkey_is_verified(link: &Link) {
    let secured = Secured::new(link);
    let base = &secured.base;
    let ask = async |base: &str, parameters: &str| {
        let cache = cache_backends::connect(&secured.url(base, parameters)).unwrap();
        cache.get_dyn(&trouble::stored("a-session-of-the-test")).await
    };
    let shown = "client_certificate={d}/cert.pem&client_key={d}/key.pem";
    let verified = format!("root_certificates={{d}}/ca.pem&{shown}");
    assert_eq!(ask(base, &verified).await.unwrap(), None);
    assert_eq!(ask(&secured.by_ipv6().await, &verified).await.unwrap(), None);

    let foreign = format!("root_certificates={}&{shown}", secured.foreign_root());
    for (base, parameters, reason) in [
        (base, foreign.as_str(), "invalid peer certificate"),
        // Without an authority in the URL, those of the system count.
        (base, shown, "invalid peer certificate"),
        (&secured.elsewhere(), verified.as_str(), "not valid for name"),
    ] {
        let error = ask(base, parameters).await.expect_err(parameters);
        assert!(error.to_string().contains(reason), "{parameters}: {error}");
        assert!(error.to_string().contains("check the certificates"), "{parameters}: {error}");
        assert!(matches!(error, CacheError::Unusable(_)), "{parameters}: {error:?}");
    }
    // The server says so after the handshake, and closes the connection, which may be all that is seen.
    let mut reasons = Vec::new();
    for _ in 0..5 {
        reasons.push(
            ask(base, "root_certificates={d}/ca.pem")
                .await
                .expect_err("no certificate was shown")
                .to_string(),
        );
    }
    let is_named =
        |reason: &String| reason.contains("CertificateRequired") && reason.contains("check the certificates");
    assert!(reasons.iter().any(is_named), "{reasons:?}");
}

pub async fn redis_is_verified_and_shown_a_certificate(links: &Links) {
    redis_or_valkey_is_verified(links.only()).await;
}

pub async fn valkey_is_verified_and_shown_a_certificate(links: &Links) {
    redis_or_valkey_is_verified(links.only()).await;
}
