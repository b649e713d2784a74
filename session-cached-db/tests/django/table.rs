//! The table, and sessions that it cannot keep.

use std::time::Duration;

use serde_json::json;
use session_cached_db::session_core::bytes::Bytes;
use session_cached_db::session_core::{
    JsonCodec, Persistence as _, PersistenceError, Record, RecordWrite, SchemaProblem, StoredKey, Timestamp,
};
use session_cached_db::{BuildError, CachedDb, Error, NoCache};

use crate::database::Kind;
use crate::site::{SECRET_KEY, Site};

pub async fn schema_as_sql_is_djangos(site: &Site) {
    let db = site.database.connect_to("copy_of_the_table").await.unwrap();
    assert!(db.check_schema().await.is_err());
    site.django("sql", json!({"statements": db.schema_sql()}));
    db.check_schema().await.unwrap();
    let described = |table: &str| site.django("columns", json!({"table": table}));
    assert_eq!(described("copy_of_the_table"), described("django_session"));
    let names = |sql: &str| {
        let names = sql.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        names.filter(|name| name.starts_with("django_session_")).map(str::to_owned).collect::<Vec<_>>()
    };
    let sql = site.database.connect().await.schema_sql();
    let made = site.django("sqlmigrate", json!({}));
    assert_eq!(names(&sql), names(made["sql"].as_str().unwrap()), "the indexes must have Django's names");
}

pub async fn missing_or_foreign_table_is_refused(site: &Site) {
    let missing = site.database.connect_to("no_such_table").await.unwrap();
    for found in [missing.migrate().await, missing.check_schema().await] {
        match found {
            Err(PersistenceError::Config(text)) => {
                assert!(text.contains("manage.py migrate sessions"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    let built = CachedDb::builder(NoCache, missing).reaper(None).build().await;
    assert!(matches!(built, Err(BuildError::Database(_))));
    let foreign = site.database.connect_to("auth_user").await.unwrap();
    let found = foreign.migrate().await;
    assert!(matches!(found, Err(PersistenceError::Schema(SchemaProblem::Foreign { .. }))), "{found:?}");
    assert!(matches!(site.database.connect_to("a b").await, Err(PersistenceError::Config(_))));
}

pub async fn session_that_django_could_not_read_is_refused(site: &Site) {
    let store = site.builder(NoCache, &[SECRET_KEY]).await.codec(JsonCodec::default()).build().await.unwrap();
    let mut session = store.new_session();
    session.insert("a", 1).unwrap();
    let Err(Error::Database(error)) = session.save().await else { panic!("it was saved") };
    assert!(error.is_caller_error() && error.to_string().contains("DjangoCodec"), "{error}");

    let store = site.store().await;
    let mut session = store.new_session();
    session.set_subject("42").unwrap();
    let Err(Error::Database(error)) = session.save().await else { panic!("it was saved") };
    assert!(error.is_caller_error() && error.to_string().contains("_auth_user_id"), "{error}");
}

pub async fn absolute_timeout_is_refused(site: &Site) {
    let builder = site.builder(NoCache, &[SECRET_KEY]).await;
    let built = builder.absolute_timeout(Duration::from_secs(60 * 60)).build().await;
    assert!(
        matches!(&built, Err(BuildError::Invalid(text)) if text.contains("absolute_timeout")),
        "{built:?}"
    );
}

/// The table has tens of thousands of rows. For SQLite, a test beside the statements checks their plans.
pub async fn no_statement_reads_the_whole_table(site: &Site) {
    const TABLE: &str = "rows_read";
    let kind = site.database.kind;
    if kind == Kind::Sqlite {
        return;
    }
    let (pool, db) = site.database.pooled(TABLE).await;
    site.django("sql", json!({"statements": db.schema_sql()}));
    let text = "'key-' || n, 'e30:1r31eq:x', '2020-01-01 00:00:00+00'::timestamptz + n * interval '1 second'";
    let fill = match kind {
        Kind::Postgres => format!("INSERT INTO {TABLE} SELECT {text} FROM generate_series(0, 19999) n"),
        _ => format!(
            "INSERT INTO {TABLE} WITH RECURSIVE digits AS (SELECT 0 d UNION ALL SELECT d + 1 FROM digits WHERE d < 9)
             SELECT concat('key-', n), 'e30:1r31eq:x', date_add('2020-01-01', INTERVAL n SECOND) FROM (
                 SELECT a.d + 10*b.d + 100*c.d + 1000*e.d AS n
                 FROM digits a, digits b, digits c, digits e) numbers"
        ),
    };
    site.django("sql", json!({"statements": fill}));
    site.django(
        "sql",
        json!({"statements": match kind {
            Kind::Postgres => format!("ANALYZE {TABLE}"),
            _ => format!("ANALYZE TABLE {TABLE}"),
        }}),
    );

    let now = Timestamp::from_secs(1_577_836_800 + 100);
    let new = Record::new(Bytes::from_static(b"e30:1r31ff:x"), now, now + Duration::from_secs(1_000_000));
    for round in 0..10 {
        let before = pool.rows_read(kind, TABLE).await;
        let key = StoredKey::parse(&format!("key-{}", 5_000 + round)).unwrap();
        let version = db.load(&key, now).await.unwrap().unwrap().version();
        db.update(&key, RecordWrite::new(&new).with_expected(version), now).await.unwrap();
        let conflict = db.update(&key, RecordWrite::new(&new).with_expected(version), now).await;
        assert!(matches!(conflict, Err(PersistenceError::Conflict)), "{conflict:?}");
        db.touch(&key, new.expires_at(), Timestamp::MAX, now).await.unwrap();
        let renamed = StoredKey::parse(&format!("renamed-{round}")).unwrap();
        db.rename(&key, &renamed, RecordWrite::new(&new), now).await.unwrap();
        db.insert(&key, &new).await.unwrap();
        assert!(db.delete(&renamed).await.unwrap());
        let read = pool.rows_read(kind, TABLE).await - before;
        assert!(read < 400, "round {round}: {read} rows were read for a few");

        let before = pool.rows_read(kind, TABLE).await;
        assert_eq!(db.delete_expired(now, 10).await.unwrap().count, 10);
        let read = pool.rows_read(kind, TABLE).await - before;
        assert!(read < 400, "round {round}: {read} rows were read to delete ten");
    }
}
