//! One of the processes: this program again, with orders in its first line.

use std::io::{BufRead as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use session_cached_db::{Builder, CachedDb, Coherence, ConflictPolicy, Error, Reaper, Schema, Session};
use session_core::{
    Cache, DynCache, DynDatabase, Outcome, Record, SessionKey, StoredKey, SubjectIndex, Timestamp,
    bytes::Bytes,
};

use super::broken::{Overdue, StaleCache};
use super::history::{
    Action, Answer, Blame, COUNTED, Counted, Fields, Lie, Line, MILLI, Nanos, Orders, SECOND, SessionId,
    is_strict, now,
};
use crate::Failure;

/// The variable in the environment of a process that is a worker.
pub(crate) const ROLE: &str = "SOAK_WORKER";

pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(2);
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// The database's bound on an abandoned statement; see the parameters of the URLs.
pub(crate) const STATEMENT_BOUND: Duration = Duration::from_secs(3);
/// Longer than a write and the database's bound together. The bound includes the grace period.
pub(crate) const FENCE_TTL: Duration = Duration::from_secs(14);
/// Long enough that a late answer is no outage when two cores run all of this.
pub(crate) const CACHE_TIMEOUT: Duration = Duration::from_millis(500);

pub(crate) type Store = CachedDb<Arc<dyn DynCache>, Arc<dyn DynDatabase>>;

/// Follows its orders until it is killed, or until its parent closes its input.
pub(crate) fn main() -> Result<(), Failure> {
    let mut first = String::new();
    std::io::stdin().lock().read_line(&mut first)?;
    let orders: Orders = serde_json::from_str(&first)?;
    std::thread::spawn(|| {
        let mut rest = String::new();
        while std::io::stdin().lock().read_line(&mut rest).is_ok_and(|read| read > 0) {}
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(work(Arc::new(orders)))
}

pub(crate) async fn store(orders: &Orders) -> Result<Store, Failure> {
    let mut cache: Arc<dyn DynCache> = cache_backends::connect(&orders.cache)?;
    match orders.lie {
        None => {}
        Some(Lie::Stale) => cache = Arc::new(StaleCache::new(cache)),
        Some(Lie::Overdue) => cache = Arc::new(Overdue(cache)),
    }
    let max_cache_age = Duration::from_nanos(orders.max_cache_age);
    // The counts hold under either policy, also beside each other.
    let policy =
        if orders.process.is_multiple_of(2) { ConflictPolicy::LastWrite } else { ConflictPolicy::Reject };
    let configure = |builder: StoreBuilder| builder.conflict_policy(policy);
    configured(cache, &orders.database, max_cache_age, CACHE_TIMEOUT, configure).await
}

pub(crate) async fn store_over(
    cache: Arc<dyn DynCache>,
    database: &str,
    max_cache_age: Duration,
    cache_timeout: Duration,
) -> Result<Store, Failure> {
    configured(cache, database, max_cache_age, cache_timeout, |builder| builder).await
}

type StoreBuilder = Builder<Arc<dyn DynCache>, Arc<dyn DynDatabase>>;

async fn configured(
    cache: Arc<dyn DynCache>,
    database: &str,
    max_cache_age: Duration,
    cache_timeout: Duration,
    configure: impl FnOnce(StoreBuilder) -> StoreBuilder,
) -> Result<Store, Failure> {
    let db = db_backends::connect(database).await?;
    let store = configure(CachedDb::builder(cache, db))
        .schema(Schema::Trust)
        .reaper(None::<Reaper>)
        .max_cache_age(max_cache_age)
        .cache_timeout(cache_timeout)
        .read_timeout(READ_TIMEOUT)
        .write_timeout(WRITE_TIMEOUT)
        .fence_ttl(FENCE_TTL)
        .lease_ttl(Duration::from_secs(5))
        .build()
        .await?;
    Ok(store)
}

pub(crate) fn send_line(line: &Line) {
    let is_sent =
        serde_json::to_string(line).is_ok_and(|text| writeln!(std::io::stdout().lock(), "{text}").is_ok());
    if !is_sent {
        // The parent is gone.
        std::process::exit(1);
    }
}

/// Numbers the operations of this process.
pub(crate) static OPS: AtomicU64 = AtomicU64::new(0);

async fn work(orders: Arc<Orders>) -> Result<(), Failure> {
    let store = store(&orders).await?;
    send_line(&Line::Ready);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..orders.tasks {
        let task = Task {
            store: store.clone(),
            orders: Arc::clone(&orders),
            writer: orders.first_writer + number,
            count: 0,
            random: Rng::with_seed(orders.seed ^ u64::from(orders.first_writer + number)),
        };
        tasks.spawn(task.run(number == 0));
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            // No task ends by itself.
            Some(ended) = tasks.join_next() => ended?,
        }
        send_line(&Line::Stats { at: now(), figures: store.stats().into() });
    }
}

struct Task {
    store: Store,
    orders: Arc<Orders>,
    writer: u32,
    count: u64,
    random: Rng,
}

impl Task {
    async fn run(mut self, creates: bool) {
        let slots = self.orders.slots;
        let mut created = vec![0; slots as usize];
        loop {
            if creates {
                for slot in 0..slots {
                    let (generation, since) = self.orders.turn(slot, now());
                    let session = SessionId { slot, generation };
                    let is_new = created[slot as usize] < generation && since >= self.orders.creates_from;
                    created[slot as usize] = generation;
                    if is_new && self.orders.creates(session) {
                        self.operate(session, Action::Create).await;
                    }
                }
            }
            let session = self.choose_session();
            let action = self.choose_action(session);
            self.operate(session, action).await;
            let pause = self.random.u64(0..=2 * self.orders.pause);
            tokio::time::sleep(Duration::from_nanos(pause)).await;
        }
    }

    fn choose_session(&mut self) -> SessionId {
        let slot = self.random.u32(0..self.orders.slots);
        let (generation, _) = self.orders.turn(slot, now());
        // Now and then, a session whose time is over, which must stay as it is.
        let back = u64::from(self.random.u8(..) < 24 && generation > 1);
        SessionId { slot, generation: generation - back }
    }

    fn choose_action(&mut self, session: SessionId) -> Action {
        let (generation, since) = self.orders.turn(session.slot, now());
        let is_late = generation > session.generation || now() > since + self.orders.generation * 3 / 4;
        let (touches, saves) = if self.orders.is_read_mostly { (9, 60) } else { (60, 380) };
        match self.random.u16(0..1_000) {
            0..=3 => Action::Delete,
            4..=5 => Action::Rotate,
            6..=25 if is_late => Action::Delete,
            26..=33 if is_late => Action::Rotate,
            chosen if chosen <= touches => Action::Touch,
            chosen if chosen <= saves => {
                self.count += 1;
                Action::Save(self.writer, self.count)
            }
            _ => Action::Load,
        }
    }

    async fn operate(&self, session: SessionId, action: Action) {
        let op = OPS.fetch_add(1, Ordering::Relaxed);
        send_line(&Line::Begin { op, session, action, at: now() });
        let outcome = attempt(&self.store, &self.orders.session_key(session), action, Counting::Modify).await;
        send_line(&ended(op, action, outcome));
    }
}

/// Returns the report on an operation that has just answered or failed.
pub(crate) fn ended(op: u64, action: Action, outcome: Result<(Answer, Coherence), Error>) -> Line {
    let at = now();
    let (answer, degraded, error) = match outcome {
        Ok((answer, coherence)) => (answer, coherence == Coherence::Degraded, None),
        Err(Error::SessionGone) => (Answer::Nothing, false, None),
        // The operation had no effect: too many others were faster, or its turn did not come.
        Err(Error::Conflict | Error::AlreadyExists) => (Answer::Refused, false, None),
        Err(error) => {
            let is_open = action != Action::Load && error.outcome() == Outcome::Unknown;
            let answer = if is_open { Answer::Unknown } else { Answer::Refused };
            (answer, false, Some((blame(&error), error.to_string())))
        }
    };
    Line::End { op, answer, degraded, at, error, departed: false }
}

fn blame(error: &Error) -> Blame {
    match error {
        Error::CacheUnavailable => Blame::Cache,
        Error::Busy => Blame::Queue,
        Error::Database(_) => Blame::Database,
        _ => Blame::Other,
    }
}

/// The way in which a save counts itself in the value that all writers modify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counting {
    /// Not at all: where hundreds of tasks write one session, the value would cost more than all the rest.
    Off,
    /// By `modify`, which loses no count.
    Modify,
    /// By `insert`, as if `modify` forgot its closure. Counts are lost, which shows that losses are noticed.
    Insert,
}

pub(crate) async fn attempt<C: Cache, P: SubjectIndex>(
    store: &CachedDb<C, P>,
    key: &str,
    action: Action,
    counting: Counting,
) -> Result<(Answer, Coherence), Error> {
    let coherent = |answer| Ok((answer, Coherence::Coherent));
    let stored = stored_key(store, key);
    match action {
        Action::Create => {
            let written = store.create(&stored, empty()).await?;
            Ok((Answer::Created, written.coherence))
        }
        Action::Load => {
            let session = store.open(key).await?;
            coherent(if session.key().is_some() { Answer::Seen(fields(&session)) } else { Answer::Nothing })
        }
        Action::Save(writer, count) => {
            let mut session = open(store, key).await?;
            session.insert(&format!("{writer}"), count)?;
            let count_one = move |counted: &mut Counted| *counted.entry(writer).or_default() += 1;
            match counting {
                Counting::Off => {}
                Counting::Modify => session.modify(COUNTED_VALUE, count_one)?,
                Counting::Insert => {
                    let mut counted = session.typed(COUNTED_VALUE)?;
                    count_one(&mut counted);
                    session.insert(COUNTED_VALUE, counted)?;
                }
            }
            let coherence =
                if is_strict(count) { session.save_strict().await? } else { session.save().await? };
            Ok((Answer::Saved(fields(&session)), coherence))
        }
        Action::Touch => {
            let later = Timestamp::from(SystemTime::now()) + LIFE;
            let coherence = store.touch(&stored, later).await?;
            Ok((Answer::Touched, coherence))
        }
        Action::Delete => {
            let written = store.revoke(&stored).await?;
            Ok((Answer::Removed(written.value), written.coherence))
        }
        Action::Rotate => {
            let mut session = open(store, key).await?;
            let coherence = session.cycle_key().await?;
            Ok((Answer::Rotated(fields(&session)), coherence))
        }
    }
}

const LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns a new, empty session.
pub(crate) fn empty() -> Record {
    let now = Timestamp::from(SystemTime::now());
    Record::new(Bytes::from_static(b"1{}"), now, now + LIFE)
}

pub(crate) fn stored_key<C: Cache, P: SubjectIndex>(store: &CachedDb<C, P>, key: &str) -> StoredKey {
    let key = SessionKey::parse(key).expect("32 hexadecimal digits");
    store.stored_key(&key).expect("no prefix makes it too long")
}

/// A session that is not there counts as ended.
async fn open<C: Cache, P: SubjectIndex>(store: &CachedDb<C, P>, key: &str) -> Result<Session, Error> {
    let session = store.open(key).await?;
    if session.key().is_some() { Ok(session) } else { Err(Error::SessionGone) }
}

/// The name of the value that all writers modify.
const COUNTED_VALUE: &str = "counted";

/// Returns the fields, and among them what is counted.
fn fields(session: &Session) -> Fields {
    let number = |name: &str, value: &str| Some((name.parse().ok()?, value.parse().ok()?));
    let fields = session.iter().filter_map(|(name, value)| number(name, value));
    let counted: Counted = session.typed(COUNTED_VALUE).unwrap_or_default();
    fields.chain(counted.into_iter().map(|(writer, count)| (writer + COUNTED, count))).collect()
}

/// The time after its beginning in which a write may still take effect. It is generous, because a paused
/// server does not see its bound pass.
pub(crate) const WRITE_BOUND: Nanos = 13 * SECOND;

pub(crate) const PAUSE: Nanos = 8 * MILLI;
