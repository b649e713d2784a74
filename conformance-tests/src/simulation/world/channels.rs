//! The channels by which near caches are told of changes.

use std::collections::VecDeque;
use std::sync::Arc;

use session_core::NoticeListener;

use super::World;
use crate::simulation::call::{Call, Reply};
use crate::simulation::places::{self, Places};
use crate::simulation::settings::{KEYS, stored_keys};
use crate::simulation::task_id::TaskId;
use crate::simulation::trace::Event;

/// A connection on which reports and answers come in order.
#[derive(Debug)]
pub(super) struct Channel {
    process: usize,
    listener: Arc<dyn NoticeListener>,
    /// The channel is one to the database, and reports what other processes commit.
    is_database_channel: bool,
    /// The keys whose next change is reported.
    watched: [bool; KEYS.len()],
    /// Messages that the server has sent and the process has not read.
    stream: VecDeque<Item>,
    /// The connection is there, at both ends.
    is_open: bool,
}

/// A message of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum Item {
    /// A key has changed.
    Notice(usize),
    /// The answer to the call of a task, with the call's number.
    Answer(TaskId, u32),
}

impl World {
    /// Opens a channel of a process, and returns its number.
    pub(in crate::simulation) fn open_channel(
        &mut self,
        process: usize,
        is_database_channel: bool,
        listener: Arc<dyn NoticeListener>,
    ) -> usize {
        let watched = [false; KEYS.len()];
        let stream = VecDeque::new();
        self.channels.push(Channel {
            process,
            is_database_channel,
            listener,
            watched,
            stream,
            is_open: true,
        });
        self.channels.len() - 1
    }

    /// Closes a channel. What it has not delivered is lost, and calls on it fail.
    pub(in crate::simulation) fn close_channel(&mut self, number: usize) {
        let channel = &mut self.channels[number];
        channel.is_open = false;
        channel.watched = [false; KEYS.len()];
        channel.stream.clear();
        for task in self.tasks.values_mut() {
            if let Some(call) = task.call.as_mut().filter(|call| call.effect.channel() == Some(number))
                && !call.has_arrived
            {
                call.reply = Some(Reply::Unknown);
            }
        }
    }

    /// Closes all channels of a process.
    pub(in crate::simulation) fn close_channels_of(&mut self, process: usize) {
        for number in 0..self.channels.len() {
            if self.channels[number].process == process {
                self.close_channel(number);
            }
        }
    }

    /// Returns the numbers of the channels that are open, and their processes.
    pub(in crate::simulation) fn open_channels(&self) -> Vec<(usize, usize)> {
        let numbered = self.channels.iter().enumerate();
        numbered
            .filter(|(_, channel)| channel.is_open)
            .map(|(number, channel)| (number, channel.process))
            .collect()
    }

    /// Evicts the entry under `key`.
    pub(in crate::simulation) fn evict(&mut self, key: usize) {
        self.note(|| Event::Evicted { key });
        self.lose(key);
    }

    /// Removes the entry under `key`, and reports that.
    pub(super) fn lose(&mut self, key: usize) {
        self.slots[key] = None;
        self.note_change(key);
    }

    /// Sends a report to every channel that watches `key`.
    pub(super) fn note_change(&mut self, key: usize) {
        for channel in &mut self.channels {
            if std::mem::take(&mut channel.watched[key]) {
                channel.stream.push_back(Item::Notice(key));
            }
        }
    }

    /// Sends a report of what a process has committed to every channel of the others.
    pub(super) fn note_commit(&mut self, key: usize, process: Option<usize>) {
        let listening = |channel: &&mut Channel| {
            channel.is_database_channel && channel.is_open && Some(channel.process) != process
        };
        for channel in self.channels.iter_mut().filter(listening) {
            channel.stream.push_back(Item::Notice(key));
        }
    }

    /// Lets the server answer a call by a channel, and returns the answer.
    pub(super) fn answer_by(&mut self, number: usize, watched: Option<usize>, item: Item) -> Reply {
        if !self.channels[number].is_open {
            return Reply::Unknown;
        }
        let reply = match watched {
            Some(key) => Reply::Found(self.entry(key).cloned()),
            None => Reply::Ponged,
        };
        let channel = &mut self.channels[number];
        if let Some(key) = watched {
            channel.watched[key] = true;
        }
        channel.stream.push_back(item);
        reply
    }

    /// Returns the next message of a channel that its process has to read. Skips answers that no task waits for.
    pub(in crate::simulation) fn next_item(&mut self, number: usize) -> Option<Item> {
        while let Some(item) = self.channels[number].stream.front().copied() {
            match item {
                Item::Answer(task, call) if self.waiting_call(task, call).is_none() => {
                    self.channels[number].stream.pop_front();
                }
                item => return Some(item),
            }
        }
        None
    }

    /// Returns the call of `task` with this number, if its answer has not arrived.
    fn waiting_call(&self, task: TaskId, number: u32) -> Option<&Call> {
        let call = self.tasks.get(&task)?.call.as_ref()?;
        (call.number == number && !call.has_arrived).then_some(call)
    }

    /// Returns `true` if the answer to the call of `task` is behind other messages.
    pub(in crate::simulation) fn is_behind(&self, task: TaskId, call: &Call) -> bool {
        let Some(number) = call.effect.channel() else { return false };
        let item = Item::Answer(task, call.number);
        let stream = &self.channels[number].stream;
        let is_live = |item: &&Item| match item {
            Item::Answer(task, call) => self.waiting_call(*task, *call).is_some(),
            Item::Notice(_) => true,
        };
        stream.contains(&item) && stream.iter().find(is_live) != Some(&item)
    }

    /// Returns `true` if a report is behind the answer to the call of `task`.
    pub(in crate::simulation) fn is_before_notice(&self, task: TaskId, call: &Call) -> bool {
        let Some(number) = call.effect.channel() else { return false };
        let stream = &self.channels[number].stream;
        let item = Item::Answer(task, call.number);
        stream.iter().skip_while(|other| **other != item).any(|item| matches!(item, Item::Notice(_)))
    }

    /// Takes the answer to the call of `task` out of the stream, because it is about to be read.
    pub(in crate::simulation) fn take_item(&mut self, task: TaskId) {
        let call = self.tasks.get(&task).and_then(|state| state.call.as_ref());
        if let Some((number, item)) =
            call.and_then(|call| Some((call.effect.channel()?, Item::Answer(task, call.number))))
        {
            self.channels[number].stream.retain(|other| *other != item);
        }
    }

    /// Returns `true` if the next message of a channel is a report.
    pub(in crate::simulation) fn has_notice(&self, number: usize) -> bool {
        let is_live = |item: &&Item| match item {
            Item::Answer(task, call) => self.waiting_call(*task, *call).is_some(),
            Item::Notice(_) => true,
        };
        matches!(self.channels[number].stream.iter().find(is_live), Some(Item::Notice(_)))
    }

    /// Delivers the report that is the next message of a channel.
    pub(in crate::simulation) fn notice(&mut self, number: usize) {
        if let Some(Item::Notice(key)) = self.next_item(number) {
            let channel = &mut self.channels[number];
            channel.stream.pop_front();
            // Memory neither asks the world nor wakes a task.
            channel.listener.changed(&stored_keys()[key]);
        }
    }

    pub(super) fn add_channels(&self, places: &mut Places) {
        for (number, channel) in self.channels.iter().enumerate().filter(|(_, channel)| channel.is_open) {
            // The number of a call depends on how many pings came before it, and decides nothing.
            let stream = channel.stream.iter().map(|item| match item {
                Item::Notice(key) => (Some(*key), None),
                Item::Answer(task, _) => (None, Some(*task)),
            });
            let of = (number, channel.watched, stream.collect::<Vec<_>>());
            places.add(places::channel(channel.process), of);
        }
    }
}
