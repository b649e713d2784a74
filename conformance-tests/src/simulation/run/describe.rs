//! Descriptions of a run for a reader.

use std::fmt;

use session_core::{Entry, Expected, State};

use super::Simulation;
use super::choices::{Choice, JUMPS};
use crate::simulation::call::{Effect, Seen};
use crate::simulation::settings::{KEYS, TICK, stored_keys};
use crate::simulation::task_id::TaskId;
use crate::simulation::world::lock;

impl Simulation<'_> {
    /// Describes a choice.
    pub(in crate::simulation) fn describe(&self, choice: Choice) -> String {
        let world = lock(&self.world);
        let who = |id: &TaskId| match self.scenario.operations.get(id.operation()) {
            Some((operation, process)) => {
                format!("{}#{}@{process}", operation.name(), id.operation())
            }
            None => format!("{id:?}"),
        };
        let what = |id: &TaskId| match world.tasks.get(id).and_then(|task| task.call.as_ref()) {
            Some(call) => format!("{}: {}", who(id), Described(&call.effect)),
            None => who(id),
        };
        match &choice {
            Choice::Begin(number) => format!("{} begins", who(&TaskId::of_operation(*number))),
            Choice::Start(id) => format!("{}: its write queue begins", who(id)),
            Choice::Rival => "another process gets ahead".into(),
            Choice::TakeEffect(id) => what(id),
            Choice::Arrive(id) => format!("{}: the answer arrives", who(id)),
            Choice::Fire(id) => format!("{}: its timer fires", who(id)),
            Choice::TakeEffectLate(id) => {
                let late = world.late.iter().find(|late| late.id() == *id);
                let effect = late.map(|late| format!("{}", Described(&late.effect)));
                format!("{}, given up before: {}", who(&id.0), effect.unwrap_or_default())
            }
            Choice::Read(id) => format!("{}: the answer is read", who(id)),
            Choice::Notice(number) => format!("channel {number}: a report is read"),
            Choice::Tick => format!("{TICK:?} pass"),
            Choice::Cut(number) => format!("FAULT channel {number} is cut"),
            Choice::GiveUp(id) => format!("FAULT {}: the answer to the ping is not waited for", who(id)),
            Choice::Finish => "all is quiet".into(),
            Choice::Refuse(id) => format!("FAULT {}: an error, without effect", what(id)),
            Choice::LoseAnswer(id) => format!("FAULT {}: it happens, but the answer is lost", what(id)),
            Choice::Delay(id) => format!("FAULT {}: an error; it may happen later", what(id)),
            Choice::Stall(id, jump) => {
                format!("FAULT {}: {} s pass before the answer arrives", what(id), JUMPS[*jump].as_secs())
            }
            Choice::Drop(number) => {
                format!("FAULT the caller of {} leaves", who(&TaskId::of_operation(*number)))
            }
            Choice::Suspend(number) => {
                format!("FAULT {} is not polled any more", who(&TaskId::of_operation(*number)))
            }
            Choice::Crash(process) => format!("FAULT process {process} dies"),
            Choice::Evict(key) => format!("FAULT the entry of {} is evicted", KEYS[*key]),
            Choice::Revert(key) => format!("FAULT the cache loses its last change of {}", KEYS[*key]),
            Choice::Pass(jump) => format!("FAULT {} s pass", JUMPS[*jump].as_secs()),
        }
    }

    /// Describes the contents of the cache and of the database.
    pub(in crate::simulation) fn describe_state(&self) -> String {
        let world = lock(&self.world);
        let described = |key: usize| {
            let cached = match world.entry(key).map(|entry| &entry.state) {
                None => "nothing".to_owned(),
                Some(State::Lease) => "a lease".to_owned(),
                Some(State::Value(value)) => {
                    format!("value {:?}", Seen::of(&value.record).0)
                }
                Some(State::Fence(fence)) => {
                    let dirty = if fence.dirty { "dirty " } else { "" };
                    format!("{dirty}fence of {}", fence.holders.len())
                }
            };
            let row = world.row(key).map_or("no row".to_owned(), |row| format!("row {:?}", Seen::of(row).0));
            format!("{}: {cached} | {row}", ["A", "B"][key])
        };
        let memories = self.nears.iter().enumerate().filter_map(|(process, near)| {
            let near = near.as_ref()?;
            let held = match near.present(&stored_keys()[0]).map(|entry| entry.state) {
                None => "nothing".to_owned(),
                Some(State::Value(value)) => format!("value {:?}", Seen::of(&value.record).0),
                Some(_) => "a lease".to_owned(),
            };
            let fresh = if near.state().0 { "fresh" } else { "stale" };
            Some(format!("; memory {process}: {held}, {fresh}"))
        });
        let memories: String = memories.collect();
        format!("{}; {}{memories}", described(0), described(1))
    }
}

struct Described<'a>(&'a Effect);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = |entry: &Entry| match &entry.state {
            State::Value(_) => "a value",
            State::Lease => "a lease",
            State::Fence(_) => "a fence",
        };
        match self.0 {
            Effect::Get(key) => write!(f, "cache get {}", KEYS[*key]),
            Effect::Watch(channel, key) => write!(f, "channel {channel} get {}", KEYS[*key]),
            Effect::Ping(channel) => write!(f, "channel {channel} ping"),
            Effect::Acquire(key, ..) => write!(f, "cache acquire {}", KEYS[*key]),
            Effect::Exchange(key, expected, new, _) => {
                let new = new.as_ref().map_or("nothing", entry);
                let over = match expected {
                    Expected::Vacant => "nothing",
                    Expected::Stamp(_) => "a stamp",
                };
                write!(f, "cache put {new} over {over} at {}", KEYS[*key])
            }
            Effect::Load(key, _) => write!(f, "database load {}", KEYS[*key]),
            Effect::List(_) => write!(f, "database list"),
            Effect::Insert(key, _) => write!(f, "database insert {}", KEYS[*key]),
            Effect::Update(key, ..) => write!(f, "database update {}", KEYS[*key]),
            Effect::Touch(key, ..) => write!(f, "database touch {}", KEYS[*key]),
            Effect::Rename(..) => write!(f, "database rename"),
            Effect::Delete(key) => write!(f, "database delete {}", KEYS[*key]),
            Effect::DeleteAll(keys) => {
                write!(f, "database delete")?;
                keys.iter().try_for_each(|key| write!(f, " {}", KEYS[*key]))
            }
            Effect::DeleteExpired(_) => write!(f, "database delete expired"),
            Effect::Note(_) => write!(f, "database note the rotation"),
            Effect::Notes(key, _) => write!(f, "database notes about {}", KEYS[*key]),
        }
    }
}
