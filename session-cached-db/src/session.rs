use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use session_core::{
    BoxFuture, Cache, Codec, Expiry, Persistence, Record, SessionData, SessionKey, Stamp, StoredKey, Subject,
    Timestamp,
};

use crate::config::Config;
use crate::events::Ending;
use crate::flight::Loaded;
use crate::inner::Inner;
use crate::operations::{Save, Saved, Written, expiry_of};
use crate::queue::Touch;
use crate::tasks::Admission;
use crate::{Coherence, EXPIRY_KEY, Error};

/// How often another key is tried when a random one exists already, which all but never happens.
pub(crate) const MAX_KEYS: u32 = 8;

const TEST_COOKIE: &str = "testcookie";
const TEST_COOKIE_WORKED: &str = "worked";

/// One client's session: a map from string to anything that serde can write as JSON, and what belongs to it.
///
/// Got from [`CachedDb::open`](crate::CachedDb::open). Reading and changing it happens in memory; nothing is stored
/// before [`save`](Self::save). A save applies the changed keys, and only those, to whatever the session has become in
/// the meantime, so requests that run at the same time do not undo each other.
///
/// A session that was deleted, or has expired, is never written again: [`Error::SessionGone`].
///
/// `Debug` shows neither its key nor its contents.
pub struct Session {
    store: Arc<dyn Sessions>,
    stored: Option<Stored>,
    /// The data with the changes. Until there is one, what is stored is read.
    changed: Option<SessionData>,
    subject: Option<Option<Subject>>,
    accessed: AtomicBool,
    modified: bool,
}

/// The session as it is in the database.
struct Stored {
    key: SessionKey,
    stored_key: StoredKey,
    loaded: Loaded,
    /// What the record holds, shared with other readers, from when it is first asked for.
    data: OnceLock<SessionData>,
}

/// A store without its type parameters, so that handlers need not spell out backends.
pub(crate) trait Sessions: Send + Sync + fmt::Debug {
    fn create(self: Arc<Self>, key: StoredKey, record: Record) -> BoxFuture<Result<Saved, Error>>;
    fn save(self: Arc<Self>, key: StoredKey, save: Save) -> BoxFuture<Result<Saved, Error>>;
    fn touch(self: Arc<Self>, key: StoredKey, touch: Touch) -> BoxFuture<Result<Coherence, Error>>;
    fn delete(
        self: Arc<Self>,
        key: StoredKey,
        seen: Option<Stamp>,
    ) -> BoxFuture<Result<Written<bool>, Error>>;
    fn exists(self: Arc<Self>, key: StoredKey) -> BoxFuture<Result<bool, Error>>;
    fn record(
        &self,
        key: &StoredKey,
        data: &SessionData,
        created_at: Timestamp,
        subject: Option<Subject>,
    ) -> Result<Record, Error>;
    fn now(&self) -> Timestamp;
    fn config(&self) -> &Config;
    fn codec(&self) -> &dyn Codec;
}

impl<C: Cache, P: Persistence> Sessions for Inner<C, P> {
    fn create(self: Arc<Self>, key: StoredKey, record: Record) -> BoxFuture<Result<Saved, Error>> {
        Box::pin(async move { Self::create(&self, key, record).await })
    }
    fn save(self: Arc<Self>, key: StoredKey, save: Save) -> BoxFuture<Result<Saved, Error>> {
        Box::pin(Self::save(&self, key, save))
    }
    fn touch(self: Arc<Self>, key: StoredKey, touch: Touch) -> BoxFuture<Result<Coherence, Error>> {
        Box::pin(Self::touch(&self, key, touch))
    }
    fn delete(
        self: Arc<Self>,
        key: StoredKey,
        seen: Option<Stamp>,
    ) -> BoxFuture<Result<Written<bool>, Error>> {
        Box::pin(Self::delete(&self, key, seen, Ending::Destroyed, Admission::New))
    }
    fn exists(self: Arc<Self>, key: StoredKey) -> BoxFuture<Result<bool, Error>> {
        Box::pin(async move { Ok(self.load(&key).await?.is_some()) })
    }
    fn record(
        &self,
        key: &StoredKey,
        data: &SessionData,
        created_at: Timestamp,
        subject: Option<Subject>,
    ) -> Result<Record, Error> {
        Self::record(self, key, data, created_at, subject)
    }
    fn now(&self) -> Timestamp {
        self.runtime.now()
    }
    fn config(&self) -> &Config {
        &self.config
    }
    fn codec(&self) -> &dyn Codec {
        &*self.codec
    }
}

impl Session {
    pub(crate) fn new(store: Arc<dyn Sessions>) -> Self {
        Self {
            store,
            stored: None,
            changed: None,
            subject: None,
            accessed: AtomicBool::new(false),
            modified: false,
        }
    }

    #[inline]
    pub(crate) fn stored(
        store: Arc<dyn Sessions>,
        key: SessionKey,
        stored_key: StoredKey,
        loaded: Loaded,
    ) -> Self {
        let stored = Some(Stored { key, stored_key, loaded, data: OnceLock::new() });
        Self {
            store,
            stored,
            changed: None,
            subject: None,
            accessed: AtomicBool::new(false),
            modified: false,
        }
    }

    /// What the client is to present next time. `None` until the session is first saved, and after a
    /// [`flush`](Self::flush).
    #[must_use]
    pub fn key(&self) -> Option<&SessionKey> {
        self.stored.as_ref().map(|stored| &stored.key)
    }

    /// The key under which the session is stored, as in a list of sessions.
    #[must_use]
    pub fn stored_key(&self) -> Option<&StoredKey> {
        self.stored.as_ref().map(|stored| &stored.stored_key)
    }

    /// Whether anything was read or changed.
    #[must_use]
    pub fn accessed(&self) -> bool {
        self.accessed.load(Ordering::Relaxed)
    }

    /// Whether anything was changed since the session was opened or last saved.
    #[must_use]
    pub const fn modified(&self) -> bool {
        self.modified
    }

    /// Whether there is nothing to keep: the session has no key, holds no data, and is nobody's. To ask is no access.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stored.is_none() && self.subject().is_none() && self.visible().next().is_none()
    }
}

/// The map.
impl Session {
    /// The value under `key`.
    ///
    /// # Errors
    ///
    /// [`Error::Deserialize`] when it is not a `T`.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        self.get_raw(key).map(|json| read(key, json)).transpose()
    }

    /// The JSON text of the value under `key`.
    #[must_use]
    pub fn get_raw(&self, key: &str) -> Option<&str> {
        self.note_access();
        self.data().get(key).filter(|_| key != EXPIRY_KEY)
    }

    /// Whether there is a value under `key`.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.get_raw(key).is_some()
    }

    /// Puts `value` under `key`.
    ///
    /// # Errors
    ///
    /// [`Error::Serialize`] when it cannot be written as JSON; [`Error::ReservedKey`]. Nothing is changed then.
    pub fn insert(&mut self, key: &str, value: impl Serialize) -> Result<(), Error> {
        let json = write(key, &value)?;
        self.put(key, json)
    }

    /// Removes the value under `key`; whether there was one.
    pub fn remove(&mut self, key: &str) -> bool {
        let was_there = self.contains(key);
        if was_there {
            self.change().remove(key);
            self.modified = true;
        }
        was_there
    }

    /// Removes the value under `key`, and gives it.
    ///
    /// # Errors
    ///
    /// [`Error::Deserialize`] when it is not a `T`; it stays then.
    pub fn pop<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, Error> {
        let value = self.get(key)?;
        self.remove(key);
        Ok(value)
    }

    /// The value under `key`; if there is none, what `default` gives, which is put there.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get) and [`insert`](Self::insert).
    pub fn get_or_insert_with<T: DeserializeOwned + Serialize>(
        &mut self,
        key: &str,
        default: impl FnOnce() -> T,
    ) -> Result<T, Error> {
        if let Some(value) = self.get(key)? {
            return Ok(value);
        }
        let value = default();
        self.insert(key, &value)?;
        Ok(value)
    }

    /// Changes the value under `key` in place, beginning with `T::default()` if there is none. The change counts, as
    /// any other: there is no way to change a value unnoticed.
    ///
    /// ```
    /// # fn example(session: &mut session_cached_db::Session) -> Result<(), session_cached_db::Error> {
    /// session.modify("cart", |cart: &mut Vec<u32>| cart.push(42))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get) and [`insert`](Self::insert). Nothing is changed then.
    pub fn modify<T: DeserializeOwned + Serialize + Default, R>(
        &mut self,
        key: &str,
        change: impl FnOnce(&mut T) -> R,
    ) -> Result<R, Error> {
        let mut value = self.get(key)?.unwrap_or_default();
        let result = change(&mut value);
        self.insert(key, &value)?;
        Ok(result)
    }

    /// Puts all of `values` into the map.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert). Nothing is changed then.
    pub fn update<K: AsRef<str>, V: Serialize>(
        &mut self,
        values: impl IntoIterator<Item = (K, V)>,
    ) -> Result<(), Error> {
        let mut changed = self.data().clone();
        for (key, value) in values {
            let key = key.as_ref();
            put(&mut changed, key, write(key, &value)?)?;
        }
        self.changed = Some(changed);
        self.note_change();
        Ok(())
    }

    /// Removes all values. The session keeps its key, its subject and its expiry; see [`flush`](Self::flush) for
    /// ending it.
    pub fn clear(&mut self) {
        let expiry = self.expiry();
        let data = self.change();
        data.clear();
        if let Some(expiry) = expiry {
            set_expiry(data, expiry);
        }
        self.note_change();
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(key, _)| key)
    }

    /// The JSON texts of the values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(_, value)| value)
    }

    /// Keys and the JSON texts of their values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.note_access();
        self.visible()
    }

    /// Forgets what was changed since the session was opened or last saved: it is as it was stored then. For whoever
    /// could not save it, and answers that by himself.
    pub fn discard_changes(&mut self) {
        self.changed = None;
        self.subject = None;
        self.modified = false;
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Leaves a value by which a later request can tell that the client sends cookies.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    pub fn set_test_cookie(&mut self) -> Result<(), Error> {
        self.insert(TEST_COOKIE, TEST_COOKIE_WORKED)
    }

    /// Whether [`set_test_cookie`](Self::set_test_cookie) was called in an earlier request of this client.
    #[must_use]
    pub fn test_cookie_worked(&self) -> bool {
        matches!(self.get::<String>(TEST_COOKIE), Ok(Some(value)) if value == TEST_COOKIE_WORKED)
    }

    /// Takes that value away again.
    pub fn delete_test_cookie(&mut self) {
        self.remove(TEST_COOKIE);
    }

    fn put(&mut self, key: &str, json: String) -> Result<(), Error> {
        put(self.change(), key, json)?;
        self.note_change();
        Ok(())
    }

    /// What the application has put there.
    fn visible(&self) -> impl Iterator<Item = (&str, &str)> {
        self.data().iter().filter(|(key, _)| *key != EXPIRY_KEY)
    }

    fn data(&self) -> &SessionData {
        static EMPTY: SessionData = SessionData::new();
        let stored = || {
            let Stored { stored_key, loaded, data, .. } = self.stored.as_ref()?;
            // It was decoded, and found readable, when the session was opened.
            Some(data.get_or_init(|| loaded.record.data(stored_key, self.store.codec()).unwrap_or_default()))
        };
        self.changed.as_ref().or_else(stored).unwrap_or(&EMPTY)
    }

    fn change(&mut self) -> &mut SessionData {
        let data = self.changed.take().unwrap_or_else(|| self.data().clone());
        self.changed.insert(data)
    }

    fn note_access(&self) {
        self.accessed.store(true, Ordering::Relaxed);
    }

    fn note_change(&mut self) {
        self.note_access();
        self.modified = true;
    }
}

/// When it ends, and whose it is.
impl Session {
    /// Chooses when this session ends, or with `None` leaves that to the store. Takes effect with the next
    /// [`save`](Self::save).
    ///
    /// An expiry in the past ends the session as soon as it is saved. Another request that was opened before may still
    /// prolong the session by its own [`touch`](Self::touch), according to what it read.
    pub fn set_expiry(&mut self, expiry: impl Into<Option<Expiry>>) {
        match expiry.into() {
            Some(expiry) => {
                set_expiry(self.change(), expiry);
                self.note_change();
            }
            None => {
                self.note_access();
                if self.expiry().is_some() {
                    self.modified |= self.change().remove(EXPIRY_KEY);
                }
            }
        }
    }

    /// What was chosen by [`set_expiry`](Self::set_expiry).
    #[must_use]
    pub fn expiry(&self) -> Option<Expiry> {
        expiry_of(self.data())
    }

    /// When the session ends if it is saved now and then left alone.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at_from(self.store.now())
    }

    /// When the session ends if it is saved at `modification` and then left alone.
    #[must_use]
    pub fn expires_at_from(&self, modification: Timestamp) -> Timestamp {
        let created_at = self.created_at().unwrap_or(modification);
        self.store.config().expires_at(self.expiry(), created_at, modification)
    }

    /// How long the session lives if it is saved now and then left alone: the cookie's `Max-Age`.
    #[must_use]
    pub fn expiry_age(&self) -> Duration {
        self.expiry_age_from(self.store.now())
    }

    /// How long the session lives if it is saved at `modification` and then left alone.
    #[must_use]
    pub fn expiry_age_from(&self, modification: Timestamp) -> Duration {
        self.expires_at_from(modification).since(modification)
    }

    /// Whether the client is to drop the cookie when the browser closes.
    #[must_use]
    pub fn expires_at_browser_close(&self) -> bool {
        self.expiry()
            .map_or(self.store.config().expire_at_browser_close, |expiry| expiry == Expiry::BrowserSession)
    }

    /// When the session began. `None` until it is first saved.
    #[must_use]
    pub fn created_at(&self) -> Option<Timestamp> {
        self.stored.as_ref().map(|stored| stored.loaded.record.created_at())
    }

    /// When the session was last used, as fresh as the touch throttle makes it. `None` until it is first saved.
    #[must_use]
    pub fn last_seen_at(&self) -> Option<Timestamp> {
        self.stored.as_ref().map(|stored| stored.loaded.record.last_seen_at())
    }

    /// Whose session it is: the application's own id.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        let subject = match &self.subject {
            Some(changed) => changed.as_ref(),
            None => self.stored.as_ref().and_then(|stored| stored.loaded.record.subject()),
        };
        subject.map(Subject::as_str)
    }

    /// Says whose session it is. Takes effect with the next [`save`](Self::save) or [`cycle_key`](Self::cycle_key).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSubject`] unless it has 1 to 255 bytes and no NUL character.
    pub fn set_subject(&mut self, subject: &str) -> Result<(), Error> {
        self.subject = Some(Some(Subject::parse(subject)?));
        self.note_change();
        Ok(())
    }

    /// Says that it is nobody's session.
    pub fn clear_subject(&mut self) {
        self.subject = Some(None);
        self.note_change();
    }
}

/// What reaches the database. Each write runs in a task of its own; whoever drops its future does not learn the result,
/// but nothing is left half done.
impl Session {
    /// Stores the session: under a new key if it has none yet; otherwise by applying what was changed to whatever the
    /// session has become. Counts as use, so a sliding expiry starts anew.
    ///
    /// # Errors
    ///
    /// [`Error::SessionGone`] when the session was ended in the meantime; [`Error::TooLarge`]; [`Error::Conflict`] under
    /// [`ConflictPolicy::Reject`](crate::ConflictPolicy::Reject); or as every write. The session is as before then, and
    /// can be saved again.
    pub async fn save(&mut self) -> Result<Coherence, Error> {
        match &self.stored {
            None => self.create().await,
            Some(stored) => {
                let saved =
                    Arc::clone(&self.store).save(stored.stored_key, self.changes(stored, None)).await?;
                let (key, stored_key) = (stored.key.clone(), stored.stored_key);
                Ok(self.settle(key, stored_key, saved))
            }
        }
    }

    /// Stores the session under a new key, as a session of its own. If it had a key, what is stored under that stays;
    /// see [`cycle_key`](Self::cycle_key) for changing the key.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], or as every write.
    pub async fn create(&mut self) -> Result<Coherence, Error> {
        let subject = self.subject().map(Subject::parse).transpose()?;
        for _ in 0..MAX_KEYS {
            let (key, stored_key) = self.new_key()?;
            let record = self.store.record(&stored_key, self.data(), self.store.now(), subject.clone())?;
            match Arc::clone(&self.store).create(stored_key, record).await {
                Ok(saved) => return Ok(self.settle(key, stored_key, saved)),
                Err(Error::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::AlreadyExists)
    }

    /// Gives the session a new key, and stores it, in one statement; the old key is dead. To be done whenever a user
    /// logs in or gains rights, so that a key that was planted before is worth nothing (session fixation; ASVS 5.0
    /// 7.2.4). A session without a key is created.
    ///
    /// # Errors
    ///
    /// As [`save`](Self::save).
    pub async fn cycle_key(&mut self) -> Result<Coherence, Error> {
        for _ in 0..MAX_KEYS {
            let Some(stored) = &self.stored else { return self.create().await };
            let (key, stored_key) = self.new_key()?;
            let changes = self.changes(stored, Some(stored_key));
            match Arc::clone(&self.store).save(stored.stored_key, changes).await {
                Ok(saved) => return Ok(self.settle(key, stored_key, saved)),
                Err(Error::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::AlreadyExists)
    }

    /// Notes that the session is in use, so that a sliding expiry starts anew. Written to the database at most once per
    /// [`touch_interval`](crate::Builder::touch_interval), however many requests and nodes the session is used by; a session
    /// without a key has nothing to note.
    ///
    /// # Errors
    ///
    /// [`Error::SessionGone`], or as every write.
    pub async fn touch(&mut self) -> Result<Coherence, Error> {
        let now = self.store.now();
        let config = self.store.config();
        let Some(stored) = self.stored.as_ref() else { return Ok(Coherence::Coherent) };
        let record = &stored.loaded.record;
        // By what is stored, not by what was changed since: that may never be saved.
        let data = record.data(&stored.stored_key, self.store.codec()).unwrap_or_default();
        let expiry = expiry_of(&data);
        let interval = config.touch_interval(expiry);
        if now.since(record.last_seen_at()) < interval {
            return Ok(Coherence::Coherent);
        }
        let expires_at = config.expires_at(expiry, record.created_at(), now).max(record.expires_at());
        let touched = Record::clone(record).with_expires_at(expires_at).with_last_seen_at(now);
        let (key, seen) = (stored.stored_key, stored.loaded.stamp);
        let touch = Touch { seen, expires_at, idle_since: now - interval };
        let coherence = Arc::clone(&self.store).touch(key, touch).await?;
        if let Some(stored) = &mut self.stored {
            stored.loaded = Loaded { record: Arc::new(touched), stamp: None };
        }
        Ok(coherence)
    }

    /// Whether the session is still stored.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database does not answer.
    pub async fn exists(&self) -> Result<bool, Error> {
        match self.stored_key() {
            Some(key) => Arc::clone(&self.store).exists(*key).await,
            None => Ok(false),
        }
    }

    /// Ends the session in the database and in the cache; what is in memory stays, but can never be saved again. See
    /// [`flush`](Self::flush) for logging out. A session without a key has nothing to end.
    ///
    /// # Errors
    ///
    /// As every write.
    pub async fn delete(&self) -> Result<Coherence, Error> {
        let Some(stored) = &self.stored else { return Ok(Coherence::Coherent) };
        let deleted = Arc::clone(&self.store).delete(stored.stored_key, stored.loaded.stamp).await?;
        Ok(deleted.coherence)
    }

    /// Ends the session everywhere, for good, and empties this one: it is a new session without a key then. To be done
    /// when a user logs out.
    ///
    /// # Errors
    ///
    /// As every write. The session is as before then.
    pub async fn flush(&mut self) -> Result<Coherence, Error> {
        let coherence = self.delete().await?;
        self.stored = None;
        self.changed = None;
        self.subject = None;
        self.note_change();
        Ok(coherence)
    }

    fn new_key(&self) -> Result<(SessionKey, StoredKey), Error> {
        let key = SessionKey::generate()?;
        // Every store takes the keys that are generated: its builder has made sure.
        let stored_key = self.store.config().stored_key(&key).map_err(|_| Error::AlreadyExists)?;
        Ok((key, stored_key))
    }

    fn changes(&self, stored: &Stored, rename: Option<StoredKey>) -> Save {
        Save {
            base: Arc::clone(&stored.loaded.record),
            seen: stored.loaded.stamp,
            data: self.data().clone(),
            subject: self.subject.clone(),
            rename,
        }
    }

    fn settle(&mut self, key: SessionKey, stored_key: StoredKey, saved: Saved) -> Coherence {
        self.changed = None;
        self.stored = Some(Stored { key, stored_key, loaded: saved.loaded, data: OnceLock::new() });
        self.subject = None;
        self.modified = false;
        saved.coherence
    }
}

fn read<T: DeserializeOwned>(key: &str, json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| Error::Deserialize {
        key: key.to_owned(),
        wanted: std::any::type_name::<T>(),
        source: error.into(),
    })
}

fn write(key: &str, value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|error| Error::Serialize { key: key.to_owned(), source: Arc::new(error) })
}

fn set_expiry(data: &mut SessionData, expiry: Expiry) {
    // What `to_json` writes is JSON.
    let _ = data.insert(EXPIRY_KEY, expiry.to_json());
}

fn put(data: &mut SessionData, key: &str, json: String) -> Result<(), Error> {
    if key == EXPIRY_KEY {
        return Err(Error::ReservedKey { key: key.to_owned() });
    }
    // What serde_json has written, it can read.
    data.insert(key, json).map_err(|source| Error::Deserialize {
        key: key.to_owned(),
        wanted: "JSON",
        source,
    })
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("has_key", &self.stored.is_some())
            .field("data", self.data())
            .field("accessed", &self.accessed())
            .field("modified", &self.modified)
            .finish_non_exhaustive()
    }
}
