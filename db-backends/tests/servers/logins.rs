use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use db_backends::mysql::MySqlPersistence;
use db_backends::postgres::PostgresPersistence;
use db_backends::{Credentials, connect};
use session_core::PersistenceError;
use tokio::net::TcpListener;

use crate::proxy::Proxy;
use crate::server::{Db, Kind, Server, Settings};

/// A user of this test alone, whose password changes.
struct User {
    name: String,
}

impl User {
    async fn with(server: &Server, password: &str) -> Self {
        let name = format!("u{}", &server.table[server.table.len().saturating_sub(20)..]);
        let create = server.sql(
            &format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'"),
            &format!("CREATE USER '{name}'@'%' IDENTIFIED BY '{password}'; GRANT ALL ON *.* TO '{name}'@'%'"),
        );
        server.program().await.run(&create).await;
        Self { name }
    }

    async fn change(&self, server: &Server, password: &str) {
        let name = &self.name;
        let alter = server.sql(
            &format!("ALTER ROLE {name} PASSWORD '{password}'"),
            &format!("ALTER USER '{name}'@'%' IDENTIFIED BY '{password}'"),
        );
        server.program().await.run(&alter).await;
    }

    async fn drop(self, server: &Server) {
        let name = &self.name;
        let drop = server.sql(&format!("DROP ROLE {name}"), &format!("DROP USER '{name}'@'%'"));
        server.program().await.run(&drop).await;
    }
}

pub async fn dead_or_silent_first_host_of_several_is_passed_over(server: Server) {
    let down = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let hosts = format!("{down},{silent},{}", server.address());
    let began = Instant::now();
    let db = server.connect_to(&server.url_with(&hosts, None), Settings::default()).await.unwrap();
    db.now_dyn().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
}

pub async fn literal_ipv6_address_is_connected_to(server: Server) {
    let proxy = Proxy::on("[::1]:0", server.address()).await;
    let url = server.url_with(&proxy.address, None);
    server.connect_to(&url, Settings::default()).await.unwrap().now_dyn().await.unwrap();
    assert!(proxy.accepted() > 0);
}

pub async fn password_with_reserved_characters_is_percent_encoded(server: Server) {
    let password = "p@s:s/w?o#r%d&[,]+= \u{e9}";
    let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let user = User::with(&server, password).await;
    let url = server.url_with(&server.address(), Some((&user.name, &encoded)));
    connect(&url).await.unwrap().now_dyn().await.unwrap();
    user.drop(&server).await;
}

/// MySQL makes a certificate for itself, which no authority of the system's knows.
pub async fn encryption_needs_no_authority_and_verification_does(server: Server) {
    if server.kind == Kind::Postgres {
        let refused = connect(&format!("{}?sslmode=require", server.url)).await.err().unwrap();
        assert!(refused.to_string().contains("TLS"), "{refused}");
        return;
    }
    let user = User::with(&server, "pw").await;
    let name = &user.name;
    let mut root = server.program().await;
    root.run(&format!("ALTER USER '{name}'@'%' REQUIRE SSL")).await;
    let url = server.url_with(&server.address(), Some((name, "pw")));
    for sound in ["", "?ssl-mode=preferred", "?ssl-mode=required"] {
        connect(&format!("{url}{sound}"))
            .await
            .unwrap_or_else(|error| panic!("{sound}: {error:?}"))
            .now_dyn()
            .await
            .unwrap();
    }
    for (refused, reason) in
        [("disabled", ""), ("verify_ca", "certificate"), ("verify_identity", "certificate")]
    {
        let error = connect(&format!("{url}?ssl-mode={refused}")).await.expect_err(refused);
        assert!(error.to_string().contains(reason), "{refused}: {error}");
        assert!(!error.to_string().contains("pw@"), "{error}");
    }
    user.drop(&server).await;
}

/// Connects with a provider. A new connection is made when the proxy cuts the present one.
async fn provided<F, Fut>(server: &Server, url: &str, provider: F) -> Result<Db, PersistenceError>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Credentials, String>> + Send + 'static,
{
    Ok(match server.kind {
        Kind::Postgres => Arc::new(
            PostgresPersistence::builder().max_connections(1).credentials(provider).connect(url).await?,
        ),
        _ => {
            Arc::new(MySqlPersistence::builder().max_connections(1).credentials(provider).connect(url).await?)
        }
    })
}

pub async fn provider_is_asked_for_the_password_of_each_new_connection(server: Server) {
    let proxy = Proxy::to(server.address()).await;
    let user = User::with(&server, "first").await;
    let (password, asked) = (Arc::new(Mutex::new("first")), Arc::new(AtomicU32::new(0)));
    let provider = {
        let (name, password, asked) = (user.name.clone(), Arc::clone(&password), Arc::clone(&asked));
        move || {
            asked.fetch_add(1, Ordering::SeqCst);
            let credentials = Credentials::new(*password.lock().unwrap()).with_username(&name);
            async move { Ok(credentials) }
        }
    };
    let url = server.url_with(&proxy.address, Some(("nobody", "wrong")));
    let db = provided(&server, &url, provider).await.unwrap();
    db.now_dyn().await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    user.change(&server, "second").await;
    *password.lock().unwrap() = "second";
    proxy.cut();
    db.now_dyn().await.expect("the new connection has the new password");
    // The server is asked to end what ran on the lost connection, which takes a connection, too.
    assert!((2..=3).contains(&asked.load(Ordering::SeqCst)));
    drop(db);
    user.drop(&server).await;
}

pub async fn password_file_is_read_again_for_a_new_connection(server: Server) {
    let proxy = Proxy::to(server.address()).await;
    let user = User::with(&server, "first").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pass word");
    std::fs::write(&file, "first\n").unwrap();
    let url = server.url_with(&proxy.address, Some((&user.name, "wrong")));
    let path = file.display().to_string().replace(' ', "%20");
    let db = connect(&format!("{url}?max_connections=1&password_file={path}")).await.unwrap();
    db.now_dyn().await.unwrap();

    user.change(&server, "second").await;
    std::fs::write(&file, "second\n").unwrap();
    proxy.cut();
    db.now_dyn().await.expect("the new connection has the new password");
    drop(db);
    user.drop(&server).await;
}

pub async fn failing_provider_makes_the_database_unavailable(server: Server) {
    let provider = || async { Err("the vault is sealed".to_owned()) };
    let error = provided(&server, &server.url, provider).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("the vault is sealed"), "{error}");
    assert!(error.is_retryable());
}

/// The ways in which the provider of a test answers.
const ANSWERS: u32 = 0;
const PANICS: u32 = 1;
const PANICS_LATER: u32 = 2;
const HANGS: u32 = 3;

pub async fn provider_that_panics_or_hangs_is_asked_again(server: Server) {
    let proxy = Proxy::to(server.address()).await;
    let user = User::with(&server, "pw").await;
    let (name, way) = (user.name.clone(), Arc::new(AtomicU32::new(ANSWERS)));
    let now = Arc::clone(&way);
    let provider = move || {
        let way = now.load(Ordering::SeqCst);
        assert_ne!(way, PANICS, "in the function");
        let credentials = Credentials::new("pw").with_username(&name);
        async move {
            assert_ne!(way, PANICS_LATER, "in its future");
            if way == HANGS {
                std::future::pending::<()>().await;
            }
            Ok(credentials)
        }
    };
    let db = provided(&server, &server.url_with(&proxy.address, None), provider).await.unwrap();
    for trouble in [PANICS, PANICS_LATER, HANGS] {
        db.now_dyn().await.unwrap();
        way.store(trouble, Ordering::SeqCst);
        // Another connection is to be opened.
        proxy.cut();
        let began = Instant::now();
        // The connection before may answer once more, before its end is seen.
        let error = loop {
            match db.now_dyn().await {
                Err(error) => break error,
                Ok(_) => {
                    assert!(began.elapsed() < Duration::from_secs(15), "{trouble}: there is no password");
                }
            }
        };
        assert!(matches!(error, PersistenceError::Unavailable(_)), "{trouble}: {error:?}");
        assert!(error.is_retryable(), "{trouble}: {error:?}");
        assert!(began.elapsed() < Duration::from_secs(15), "{trouble}: it took {:?}", began.elapsed());
        way.store(ANSWERS, Ordering::SeqCst);
    }
    db.now_dyn().await.expect("the provider answers again");
    drop(db);
    user.drop(&server).await;
}
