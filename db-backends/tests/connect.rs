//! Databases by URL. The servers have theirs in `servers/by_url.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use db_backends::{ConnectError, connect};

/// URLs of databases that do not exist, and the feature that each needs.
const KNOWN: [(&str, &str, bool); 6] = [
    ("postgres://user:s3cr3t@127.0.0.1:1/db", "postgres", cfg!(feature = "postgres")),
    ("postgresql://user:s3cr3t@127.0.0.1:1/db?table=logins", "postgres", cfg!(feature = "postgres")),
    ("mysql://user:s3cr3t@127.0.0.1:1/db", "mysql", cfg!(feature = "mysql")),
    ("mariadb://user:s3cr3t@127.0.0.1:1/db?max_connections=3", "mysql", cfg!(feature = "mysql")),
    ("sqlite:///s3cr3t/does/not/exist.db", "sqlite", cfg!(feature = "sqlite")),
    ("sqlite:/s3cr3t/does/not/exist.db", "sqlite", cfg!(feature = "sqlite")),
];

#[tokio::test]
async fn url_is_tried_or_names_the_feature_that_it_needs() {
    for (url, feature, enabled) in KNOWN {
        let error = connect(url).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error}");
        match &error {
            ConnectError::FeatureDisabled { scheme, feature: needed } => {
                assert!(!enabled, "{url}: {error}");
                assert!(url.starts_with(scheme));
                assert_eq!(*needed, feature);
                assert!(error.to_string().contains(&format!("{needed:?}")), "{error}");
            }
            ConnectError::Database(_) => assert!(enabled, "{url} needs {feature}"),
            other => panic!("{url}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn unknown_scheme_is_refused_without_the_rest_of_the_url() {
    let error = connect("mongodb://user:s3cr3t@host/").await.unwrap_err();
    assert!(matches!(&error, ConnectError::UnknownScheme { scheme } if scheme == "mongodb"), "{error:?}");
    let text = format!("{error} {error:?}");
    assert!(text.contains("mongodb") && text.contains("sqlite") && !text.contains("s3cr3t"), "{text}");
}

#[tokio::test]
async fn text_that_is_no_url_is_not_repeated_in_the_error() {
    for text in ["", "s3cr3t", "s3cr3t:", "postgres:s3cr3t", "user:s3cr3t@//host", "s3cr3t@db://host/db"] {
        let error = connect(text).await.unwrap_err();
        assert!(matches!(error, ConnectError::Config(_)), "{text:?}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error:?}");
    }
}

#[tokio::test]
async fn wrong_option_is_named_without_its_value() {
    let urls: [(bool, &str); 3] = [
        (cfg!(feature = "postgres"), "postgres://user:s3cr3t@127.0.0.1:1/db?"),
        (cfg!(feature = "mysql"), "mysql://user:s3cr3t@127.0.0.1:1/db?"),
        (cfg!(feature = "sqlite"), "sqlite::memory:?"),
    ];
    for (_, url) in urls.into_iter().filter(|(enabled, _)| *enabled) {
        for (option, reason) in [
            ("tabel=s3cr3t", "unknown parameter"),
            ("s3cr3t", "unknown parameter"),
            ("table=s3cr3t%20", "table name"),
            ("table=", "table name"),
            ("acquire_timeout_ms=s3cr3t", "acquire_timeout_ms"),
            ("acquire_timeout_ms=-1", "acquire_timeout_ms"),
        ] {
            let error = connect(&format!("{url}{option}")).await.unwrap_err();
            assert!(matches!(error, ConnectError::Config(_)), "{url}{option}: {error:?}");
            let text = format!("{error} {error:?}");
            assert!(text.contains(reason) && !text.contains("s3cr3t"), "{url}{option}: {text}");
        }
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::sync::Arc;

    use db_backends::connect_to_inspect;
    use session_core::{DynDatabase, Persistence, Record, Scan, StoredKey, Subject, SubjectIndex, Timestamp};

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    /// Uses the traits alone.
    async fn assert_has_subjects_and_can_be_scanned<P: SubjectIndex + Scan>(db: P) {
        let subject = Subject::parse("user-1").unwrap();
        let key = StoredKey::parse("some-key").unwrap();
        let record = Record::new("payload".into(), NOW, NOW + std::time::Duration::from_secs(60));
        db.migrate().await.unwrap();
        db.insert(&key, &record.with_subject(Some(subject.clone()))).await.unwrap();
        assert_eq!(&**db.load(&key, NOW).await.unwrap().unwrap().payload(), b"payload");
        assert_eq!(db.list_by_subject(&subject, NOW, None, 10).await.unwrap()[0].key, key);
        assert_eq!(db.scan(None, 10).await.unwrap()[0].key, key);
        assert_eq!(db.scan(Some(&key), 10).await.unwrap().len(), 0);
    }

    #[tokio::test]
    async fn database_by_url_has_subjects_and_can_be_scanned() {
        let db: Arc<dyn DynDatabase> = connect("sqlite::memory:").await.unwrap();
        assert_has_subjects_and_can_be_scanned(db).await;
    }

    #[tokio::test]
    async fn url_options_take_effect_beside_those_of_the_driver() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sessions.db");
        let url = format!("sqlite://{}?mode=rwc&table=logins&busy_timeout_ms=1500", file.display());
        let db = connect(&url).await.unwrap();
        assert!(db.schema_sql_dyn().contains("\"logins\""));
        // The busy timeout, and 5 s.
        assert_eq!(db.properties().statement_bound, std::time::Duration::from_millis(6_500));
        assert!(file.exists());

        let url = format!("sqlite://{}?table=logins&mode=rw", dir.path().join("missing.db").display());
        assert!(matches!(connect(&url).await, Err(ConnectError::Database(_))));
    }

    #[tokio::test]
    async fn inspection_shows_version_expired_sessions_and_missing_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("sessions.db").display());
        let db = connect_to_inspect(&url).await.unwrap();
        assert_eq!(db.inspect().await.unwrap().missing_indexes, ["key", "subject", "reap_at"]);
        db.migrate_dyn().await.unwrap();
        let inspection = db.inspect().await.unwrap();
        assert!(inspection.version.starts_with("3."), "{inspection:?}");
        assert_eq!((inspection.clock, inspection.is_read_only), (None, false));
        assert_eq!(inspection.missing_indexes, [""; 0]);

        for (key, expires_at) in [("key-1", NOW), ("key-2", NOW + std::time::Duration::from_secs(1))] {
            let record = Record::new("x".into(), NOW, expires_at);
            db.insert_dyn(&StoredKey::parse(key).unwrap(), &record).await.unwrap();
        }
        assert_eq!(db.count_expired(NOW).await.unwrap(), 1);

        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("sessions.db"));
        let mut program = sqlx::ConnectOptions::connect(&options).await.unwrap();
        sqlx::query("DROP INDEX sessions_reap_at").execute(&mut program).await.unwrap();
        assert_eq!(db.inspect().await.unwrap().missing_indexes, ["reap_at"]);
    }
}
