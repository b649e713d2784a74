//! Databases that demand TLS and certificates, and their sockets.

use db_backends::ConnectError;
use session_core::PersistenceError;

use crate::{Link, Links};

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

    async fn connect(&self, base: &str, parameters: &str) -> Result<(), ConnectError> {
        let parameters = parameters.replace("{d}", &self.directory);
        let db = db_backends::connect(&format!("{base}?{parameters}")).await?;
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
}

pub async fn postgres_is_verified_and_shown_a_certificate(links: &Links) {
    let secured = Secured::new(links.only());
    let base = &secured.base;
    let shown = "sslcert={d}/cert.pem&sslkey={d}/key.pem";
    let verified = format!("sslmode=verify-full&sslrootcert={{d}}/ca.pem&{shown}");
    secured.connect(base, &verified).await.unwrap();
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
    let other = base.replace("127.0.0.1", "127.0.0.2");
    secured.is_refused(&other, &verified, "not valid for name").await;
    secured.connect(&other, &verified.replace("verify-full", "verify-ca")).await.unwrap();

    let socket = secured.directory.replace('/', "%2F");
    secured.connect(&format!("postgres://postgres@{socket}/sessions"), "").await.unwrap();
    secured.connect("postgres://postgres@localhost/sessions", "host={d}").await.unwrap();
}

pub async fn mariadb_is_verified_and_shown_a_certificate(links: &Links) {
    let secured = Secured::new(links.only());
    let base = &secured.base;
    let shown = "ssl-cert={d}/cert.pem&ssl-key={d}/key.pem";
    let verified = format!("ssl-mode=verify_identity&ssl-ca={{d}}/ca.pem&{shown}");
    secured.connect(base, &verified).await.unwrap();
    let foreign = secured.foreign_root();
    secured
        .is_refused(
            base,
            &format!("ssl-mode=verify_identity&ssl-ca={foreign}&{shown}"),
            "invalid peer certificate",
        )
        .await;
    let other = base.replace("127.0.0.1", "127.0.0.2");
    secured.is_refused(&other, &verified, "not valid for name").await;
    secured.connect(&other, &verified.replace("verify_identity", "verify_ca")).await.unwrap();
    secured.connect("mysql://root:conformance@localhost/sessions", "socket={d}/mysql.sock").await.unwrap();

    // From here on, this user has to show a certificate.
    let mut admin = sqlx_connection(base).await;
    let require = "ALTER USER 'root'@'%' REQUIRE X509";
    db_backends::sqlx::raw_sql(require).execute(&mut admin).await.unwrap();
    secured.connect(base, &verified).await.unwrap();
    secured.is_refused(base, "ssl-mode=verify_identity&ssl-ca={d}/ca.pem", "Access denied").await;
}

async fn sqlx_connection(base: &str) -> db_backends::sqlx::MySqlConnection {
    use db_backends::sqlx::Connection as _;
    db_backends::sqlx::MySqlConnection::connect(base).await.unwrap()
}
