//! The responses to errors of a session, and to answers that got lost.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse as _, Redirect, Response};
use serde_json::value::RawValue;
use session_cached_db::tower::{SessionFailure, SessionHandle};
use session_cached_db::{ConflictPolicy, Error, Session};
use session_core::{Codec, CodecError, JsonCodec, SessionData, StoredKey};

use crate::common::{Call, Fault, Log, Moment, World, each_database, map, values_of};
use crate::tower::{ask, cookie_of, layer, read, site, visit};

#[tokio::test]
async fn session_ended_meanwhile_is_answered_with_400() {
    each_database(async |world| {
        let session = world.saved([("visits", 1)]).await;
        let store = world.store.clone();
        let stored_key = *session.stored_key().unwrap();
        let page = async move |session: SessionHandle| {
            session.lock().await.unwrap().insert("visits", 2).unwrap();
            store.revoke(&stored_key).await.unwrap();
            "saved"
        };
        let answer = ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(
            answer.body,
            "The session was ended before the request was completed, for example by a logout in another window."
        );
        assert!(matches!(answer.failure, Some(SessionFailure(Error::SessionGone))), "{:?}", answer.failure);
        assert!(answer.varies_by_cookie());
        assert!(answer.set_cookie().is_none(), "the client may have got another cookie by now");
        assert_eq!(world.in_database(&stored_key).await, None, "it is not brought back");
    })
    .await;
}

#[tokio::test]
async fn handler_can_answer_an_ended_session_itself() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let store = world.store.clone();
    let stored_key = *session.stored_key().unwrap();
    let page = async move |session: SessionHandle| {
        let mut session = session.lock().await.unwrap();
        session.insert("visits", 2).unwrap();
        store.revoke(&stored_key).await.unwrap();
        assert!(matches!(session.save().await, Err(Error::SessionGone)));
        session.discard_changes();
        assert_eq!(session.get::<i32>("visits").unwrap(), Some(1));
        Redirect::to("/login")
    };
    let answer = ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn outer_layer_can_answer_with_its_own_page() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let store = world.store.clone();
    let stored_key = *session.stored_key().unwrap();
    let page = async move |session: SessionHandle| {
        session.lock().await.unwrap().insert("visits", 2).unwrap();
        store.revoke(&stored_key).await.unwrap();
    };
    let with_own_page = async |response: Response| match response.extensions().get::<SessionFailure>() {
        Some(SessionFailure(Error::SessionGone)) => {
            SessionFailure::replace(response, Redirect::to("/login").into_response())
        }
        _ => response,
    };
    let site = site(layer(&world), page).layer(middleware::map_response(with_own_page));
    let answer = ask(&site, Some(&cookie_of(&session))).await;
    assert_eq!(
        (answer.status, &answer.headers["location"]),
        (StatusCode::SEE_OTHER, &"/login".parse().unwrap())
    );
    assert!(answer.varies_by_cookie() && answer.failure.is_some());
    assert_eq!(answer.headers["cache-control"], "private");
    assert!(!answer.headers.contains_key("content-type"), "that of the plain text");
}

#[tokio::test]
async fn session_error_from_a_handler_is_the_response_and_prevents_saving() {
    let world = World::with(|builder| builder.conflict_policy(ConflictPolicy::Reject)).await;
    let mut session = world.saved([("visits", 1)]).await;
    let cookie = cookie_of(&session);
    session.insert("visits", 5).unwrap();
    let session = Arc::new(tokio::sync::Mutex::new(session));
    let page = async move |handle: SessionHandle| -> Result<(), Error> {
        let mut mine = handle.lock().await?;
        mine.insert("visits", 2)?;
        session.lock().await.save().await.unwrap();
        mine.save().await.map(drop)
    };
    let answer = ask(&site(layer(&world), page), Some(&cookie)).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(matches!(answer.failure, Some(SessionFailure(Error::Conflict))));
    assert_eq!(world.db.calls.count(Call::Update), 2, "the layer must not save again");
    assert_eq!(ask(&site_of_reading(&world), Some(&cookie)).await.body, "5");
}

pub fn site_of_reading(world: &World) -> Router {
    site(layer(world), read)
}

#[tokio::test]
async fn unanswered_database_is_503_without_internals() {
    let world = World::new().await;
    let site = site(layer(&world), visit);
    world.db.calls.fail_all(Fault::Unreachable);
    for cookies in [None, Some("__Host-session=abcdefghijklmnopqrstuvwxyz012345")] {
        let answer = ask(&site, cookies).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.body, "Sessions are not available at the moment. Please try again later.");
        assert!(matches!(answer.failure, Some(SessionFailure(Error::Database(_)))));
        assert!(answer.varies_by_cookie());
        assert!(answer.set_cookie().is_none(), "the session may be there");
    }
}

#[tokio::test]
async fn handler_without_a_session_can_go_on_and_try_again() {
    let world = World::new().await;
    let session = world.saved([("visits", 3)]).await;
    let calls = world.db.calls.clone();
    let cache = world.cache.clone();
    cache.plant(session.stored_key().unwrap(), None).await;
    let page = async move |session: SessionHandle| {
        calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
        assert!(matches!(session.lock().await, Err(Error::Database(_))));
        session.lock().await.unwrap().get::<i32>("visits").unwrap().unwrap().to_string()
    };
    assert_eq!(ask(&site(layer(&world), page), Some(&cookie_of(&session))).await.body, "3");
}

#[tokio::test]
async fn unreadable_session_is_503_and_its_cookie_and_row_stay() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let key = *session.stored_key().unwrap();
    break_payload(&world, &session).await;
    let answer = ask(&site(layer(&world), visit), Some(&cookie_of(&session))).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.sets_no_cookie());
    assert!(matches!(world.store.load(&key).await, Err(Error::Unreadable(_))));
    // Another cookie of the name counts if it opens a user's session. An anonymous one does not: it may be a leftover, and its
    // key, sent again, would take the place of this one.
    let mut other = world.saved([("visits", 7)]).await;
    for (is_user, body) in [(false, None), (true, Some("7"))] {
        if is_user {
            other.log_in("user-42").await.unwrap();
        }
        let both = format!("{}; {}", cookie_of(&session), cookie_of(&other));
        let answer = ask(&site(layer(&world), read), Some(&both)).await;
        assert_eq!(answer.status == StatusCode::OK, is_user);
        assert!(answer.sets_no_cookie());
        assert!(body.is_none_or(|body| answer.body == body));
    }
}

/// Makes the payload of the session unreadable.
async fn break_payload(world: &World, session: &Session) {
    let key = *session.stored_key().unwrap();
    let record = world.store.load(&key).await.unwrap().unwrap();
    let broken = session_core::Record::clone(&record).with_payload(Bytes::from_static(b"\x01{"));
    world.store.update(&key, broken, None, session_core::ExpiryWrite::Extend).await.unwrap();
}

#[tokio::test]
async fn logout_ends_a_session_that_cannot_be_read_and_removes_its_cookie() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    break_payload(&world, &session).await;
    async fn log_out(handle: SessionHandle) {
        handle.end().await.unwrap();
        // A request may go on with a new session.
        assert!(handle.lock().await.unwrap().key().is_none());
    }
    async fn log_out_only(handle: SessionHandle) {
        handle.end().await.unwrap();
    }
    let answer = ask(&site(layer(&world), log_out), Some(&cookie_of(&session))).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.removes_cookie());
    assert!(world.store.load(session.stored_key().unwrap()).await.unwrap().is_none());

    let readable = world.saved([("visits", 1)]).await;
    let answer = ask(&site(layer(&world), log_out_only), Some(&cookie_of(&readable))).await;
    assert!(answer.removes_cookie());
    assert!(!readable.exists().await.unwrap());
    // Without a session there is nothing to end, and no cookie to remove.
    assert!(ask(&site(layer(&world), log_out_only), None).await.sets_no_cookie());
}

#[tokio::test]
async fn too_many_writes_of_one_session_are_answered_with_503() {
    let world = World::shared_with(|builder| builder.max_waiting_writes(1)).await;
    let session = world.saved([("x", 1)]).await;
    let (site, cookie) = (site(layer(&world), visit), cookie_of(&session));
    let answers = futures_util::future::join_all((0..8).map(|_| ask(&site, Some(&cookie)))).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status != StatusCode::OK).collect();
    assert!(!refused.is_empty());
    for answer in refused {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn session_stored_without_an_answer_gets_its_cookie() {
    each_database(async |world| {
        let site = site(layer(&world), visit);
        // The layer's own save.
        world.db.calls.fail(Call::Insert, Moment::After, Fault::NoAnswer);
        let first = ask(&site, None).await;
        assert_eq!((first.status, first.body.as_str()), (StatusCode::OK, "1"));
        assert_eq!(ask(&site, Some(&first.cookie())).await.body, "2");
    })
    .await;
}

#[tokio::test]
async fn key_changed_by_a_handler_without_an_answer_gets_its_cookie() {
    each_database(async |world| {
        let session = world.saved([("visits", 1)]).await;
        let log_in = async |session: SessionHandle| session.lock().await?.log_in("user-1").await.map(drop);
        world.db.calls.fail(Call::Rename, Moment::After, Fault::NoAnswer);
        world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
        let answer = ask(&site(layer(&world), log_in), Some(&cookie_of(&session))).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        let reopened = ask(&site(layer(&world), read), Some(&answer.cookie())).await;
        assert_eq!(reopened.body, "1");
    })
    .await;
}

/// Puts into a session what a client has sent.
type Store = fn(&mut Session) -> Result<(), Error>;

#[tokio::test]
async fn input_that_a_session_cannot_hold_is_not_answered_with_500() {
    let world = World::with(|builder| builder.max_payload_bytes(1_000).max_keys(3)).await;
    let cases: [(u16, Store); 8] = [
        (413, |session| session.insert("name", "x".repeat(2_000))),
        (413, |session| session.update((0..9).map(|n| (n.to_string(), n)))),
        (413, |session| session.modify("tags", |tags: &mut Vec<u32>| tags.extend([0; 1_000]))),
        (400, |session| {
            let nested = format!("{}{}", "[".repeat(200), "]".repeat(200));
            session.insert("tree", RawValue::from_string(nested).unwrap())
        }),
        (400, |session| session.insert("price", "NaN".parse::<f64>().unwrap())),
        (400, |session| session.insert("_session_expiry", 1)),
        (400, |session| session.set_subject(&"u".repeat(256))),
        (400, |session| session.set_subject("user\0")),
    ];
    for (number, (status, store)) in cases.into_iter().enumerate() {
        let before = world.saved([("kept", 1)]).await;
        let page = async move |session: SessionHandle| store(&mut *session.lock().await?);
        let answer = ask(&site(layer(&world), page), Some(&cookie_of(&before))).await;
        assert_eq!(answer.status.as_u16(), status, "{number}: {}", answer.body);
        assert!(answer.sets_no_cookie() && answer.failure.is_some(), "{number}");
        assert_eq!(values_of(&world.reopen(&before).await), map([("kept", 1)]), "{number}");
    }
}

/// A codec that refuses some data, and fails for other data.
#[derive(Debug)]
struct Choosy;

impl Codec for Choosy {
    fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
        match data.len() {
            2 => Err(CodecError::Unencodable("the test says so".into())),
            3 => Err(CodecError::Failed("the test says so".into())),
            _ => JsonCodec::default().encode(key, data),
        }
    }
    fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
        JsonCodec::default().decode(key, payload)
    }
}

#[tokio::test]
async fn data_that_the_codec_refuses_is_400_and_its_failure_500() {
    let world = World::with(|builder| builder.codec(Choosy)).await;
    for (values, status) in [(1, 400), (2, 500), (3, 200)] {
        let before = world.saved([("kept", 1)]).await;
        let page = async move |session: SessionHandle| -> Result<(), Error> {
            session.lock().await?.update((0..values).map(|n| (n.to_string(), n)))
        };
        let answer = ask(&site(layer(&world), page), Some(&cookie_of(&before))).await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
        assert!(!answer.body.contains("the test says so"), "{}", answer.body);
    }
}

#[cfg(feature = "compress")]
#[tokio::test]
async fn data_that_is_too_large_for_the_codec_is_413() {
    let codec = session_core::CompressCodec::new(JsonCodec::default()).with_max_inflated_bytes(1_000);
    let world = World::with(|builder| builder.codec(codec)).await;
    let before = world.saved([("kept", 1)]).await;
    let page = async |session: SessionHandle| -> Result<(), Error> {
        session.lock().await?.insert("name", "x".repeat(2_000))
    };
    let answer = ask(&site(layer(&world), page), Some(&cookie_of(&before))).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let limit = |error: &Error| matches!(error, Error::TooLarge { actual: 2_001.., limit: 1_000 });
    assert!(matches!(&answer.failure, Some(SessionFailure(error)) if limit(error)), "{:?}", answer.failure);
    assert_eq!(values_of(&world.reopen(&before).await), map([("kept", 1)]));
}

#[tokio::test]
async fn refused_request_is_in_the_log_and_an_ended_session_is_not() {
    let log = Log::listen();
    let world = World::with(|builder| builder.max_payload_bytes(100)).await;
    let page = async |session: SessionHandle| -> Result<(), Error> {
        session.lock().await?.insert("name", "x".repeat(200))
    };
    for _ in 0..50 {
        assert_eq!(ask(&site(layer(&world), page), None).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    let refused = log.events("request_refused");
    assert!((1..=10).contains(&refused.len()), "{refused:?}");
    assert!(refused[0].starts_with("WARN") && refused[0].contains("max_payload_bytes"), "{refused:?}");
    let ended = async |_: SessionHandle| -> Result<(), Error> { Err(Error::SessionGone) };
    assert_eq!(ask(&site(layer(&world), ended), None).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(log.events("request_refused").len(), refused.len());
}
