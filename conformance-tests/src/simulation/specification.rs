//! The specification of the coherence protocol: which steps are permitted.
//!
//! The rules are those of `docs/coherence.tla`, one by one and by the same names. They say nothing of how a store decides
//! what to do next, and use none of its code. A model checker tries every order of them, and every run of the simulator is
//! held to them, step by step.

use std::collections::{BTreeMap, BTreeSet};

/// A row of the database, by its version. `None` if there is no row.
pub type Row = Option<u64>;

/// The content of the cache under the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cached {
    /// Nothing.
    #[default]
    Nothing,
    /// The lease with this number.
    Lease(u64),
    /// The row with this version.
    Value(u64),
    /// The fence of these tokens, and whether it is dirty. The last one is that of the writer who placed the entry.
    Fence(BTreeSet<u64>, bool, u64),
}

/// A writer's permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Token {
    writer: u64,
    /// Its deadline has passed.
    is_over: bool,
    is_settled: bool,
}

/// The state of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// The row in the database.
    pub row: Row,
    /// The entry in the cache.
    pub cache: Cached,
    /// The tokens that were placed.
    tokens: BTreeMap<u64, Token>,
    /// The leases that were placed, with every row since.
    leases: BTreeMap<u64, BTreeSet<Row>>,
    /// The loads that run, with every row since they began. `None` if anything may be shown to it, because a writer without a
    /// fence was there.
    loads: BTreeMap<u64, Option<BTreeSet<Row>>>,
    /// The last row that each writer has committed.
    committed: BTreeMap<u64, Row>,
    /// The writers that are not done, and whose fence was lost or not placed.
    pub unprotected: BTreeSet<u64>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A reader finds nothing, and places a lease.
    Acquire {
        /// The lease.
        lease: u64,
    },
    /// A reader replaces its lease by what it has read.
    Fill {
        /// The lease.
        lease: u64,
        /// The row.
        row: u64,
    },
    /// A lease or a value is removed.
    Remove,
    /// A writer places a fence, or joins one.
    Fence {
        /// The token, which was never placed before.
        token: u64,
        /// The writer.
        writer: u64,
        /// The tokens that were there and are not any more.
        without: BTreeSet<u64>,
    },
    /// The cache does not answer a writer.
    Degrade {
        /// The writer.
        writer: u64,
    },
    /// A writer's statement changes or deletes the row.
    Commit {
        /// The writer.
        writer: u64,
        /// The row that is there from now on.
        row: Row,
    },
    /// A row comes into being under a new key.
    Insert {
        /// The writer.
        writer: u64,
        /// The row.
        row: u64,
    },
    /// A writer replaces its fence by what it has written.
    Publish {
        /// The writer.
        writer: u64,
        /// The row.
        row: u64,
    },
    /// A writer leaves the fence to others.
    Leave {
        /// The writer.
        writer: u64,
        /// The tokens that were there and are not any more.
        without: BTreeSet<u64>,
    },
    /// A writer removes a fence in which no living writer is left.
    Clear {
        /// The writer.
        writer: u64,
    },
    /// A writer is done: its fence is settled, or its degraded write is repaired.
    Done {
        /// The writer.
        writer: u64,
    },
    /// The deadline of a token passes. By then, no statement of its writer can commit.
    Over {
        /// The token.
        token: u64,
    },
    /// The cache loses the entry.
    Evict,
    /// The entry ends by itself.
    End,
    /// A load begins.
    Begin {
        /// The load.
        load: u64,
    },
    /// A load answers.
    Answer {
        /// The load.
        load: u64,
        /// The row that it shows.
        row: Row,
    },
}

/// The reason why a step is not permitted.
pub type Refusal = &'static str;

fn require(holds: bool, refusal: Refusal) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(refusal) }
}

impl State {
    /// Returns the state of a key with this row, and nothing in the cache.
    #[must_use]
    pub fn new(row: Row) -> Self {
        Self { row, ..Self::default() }
    }

    /// Makes a step, and checks that the cache is still coherent.
    ///
    /// # Errors
    ///
    /// Returns the reason why the rules do not permit the step, or that the cache lies after it.
    pub fn step(&mut self, step: &Step) -> Result<(), Refusal> {
        match step {
            Step::Acquire { lease } => self.acquire(*lease),
            Step::Fill { lease, row } => self.fill(*lease, *row),
            Step::Remove => self.remove(),
            Step::Fence { token, writer, without } => self.fence(*token, *writer, without),
            Step::Degrade { writer } => {
                self.expose(*writer);
                Ok(())
            }
            Step::Commit { writer, row } => self.commit(*writer, *row),
            Step::Insert { writer, row } => self.insert(*writer, *row),
            Step::Publish { writer, row } => self.publish(*writer, *row),
            Step::Leave { writer, without } => self.leave(*writer, without),
            Step::Clear { writer } => self.clear(*writer),
            Step::Done { writer } => {
                let own = self.tokens.values_mut().filter(|token| token.writer == *writer);
                own.for_each(|token| token.is_settled = true);
                self.unprotected.remove(writer);
                Ok(())
            }
            Step::Over { token } => {
                self.tokens.entry(*token).and_modify(|token| token.is_over = true);
                Ok(())
            }
            Step::Evict => {
                self.evict();
                Ok(())
            }
            Step::End => self.end(),
            Step::Begin { load } => {
                let rows = self.unprotected.is_empty().then(|| BTreeSet::from([self.row]));
                self.loads.insert(*load, rows);
                Ok(())
            }
            Step::Answer { load, row } => self.answer(*load, *row),
        }?;
        require(
            self.is_coherent(),
            "the cache shows a row that is not there any more, and no writer is to blame",
        )
    }

    /// Returns `true` if the cache shows nothing old, or a writer whose fence was lost is still to settle.
    #[must_use]
    pub fn is_coherent(&self) -> bool {
        match self.cache {
            Cached::Value(row) => self.row == Some(row) || !self.unprotected.is_empty(),
            _ => true,
        }
    }

    /// Returns `true` if `writer` has placed a fence that is neither settled nor over.
    #[must_use]
    pub fn is_fenced(&self, writer: u64) -> bool {
        self.tokens.values().any(|token| token.writer == writer && !token.is_over && !token.is_settled)
    }

    /// Returns `true` if the deadline of this token has passed.
    #[must_use]
    pub fn is_over(&self, token: u64) -> bool {
        self.tokens.get(&token).is_some_and(|token| token.is_over)
    }

    /// Returns `true` if this token was settled.
    #[must_use]
    pub fn is_settled(&self, token: u64) -> bool {
        self.tokens.get(&token).is_some_and(|token| token.is_settled)
    }

    fn acquire(&mut self, lease: u64) -> Result<(), Refusal> {
        require(self.cache == Cached::Nothing, "a lease is placed over something")?;
        require(!self.leases.contains_key(&lease), "a lease is placed twice")?;
        self.leases.insert(lease, BTreeSet::from([self.row]));
        self.cache = Cached::Lease(lease);
        Ok(())
    }

    fn fill(&mut self, lease: u64, row: u64) -> Result<(), Refusal> {
        require(
            self.cache == Cached::Lease(lease),
            "a value enters the cache without a lease that is still there",
        )?;
        let was_there = self.leases.get(&lease).is_some_and(|rows| rows.contains(&Some(row)));
        require(was_there, "a fill with a row from before its lease")?;
        self.cache = Cached::Value(row);
        Ok(())
    }

    fn remove(&mut self) -> Result<(), Refusal> {
        require(
            !matches!(self.cache, Cached::Fence(..)),
            "a fence is removed by something else than a settlement",
        )?;
        self.cache = Cached::Nothing;
        Ok(())
    }

    fn fence(&mut self, token: u64, writer: u64, without: &BTreeSet<u64>) -> Result<(), Refusal> {
        require(!self.tokens.contains_key(&token), "a token is placed twice")?;
        let (mut holders, mut dirty) = match &self.cache {
            Cached::Fence(holders, dirty, _) => (holders.clone(), *dirty),
            _ => (BTreeSet::new(), false),
        };
        dirty |= self.give_up(writer, without)?;
        holders.retain(|holder| !without.contains(holder));
        let is_dirty = dirty && !holders.is_empty();
        holders.insert(token);
        self.tokens.insert(token, Token { writer, is_over: false, is_settled: false });
        self.cache = Cached::Fence(holders, is_dirty, token);
        Ok(())
    }

    /// Checks that `writer` may leave these tokens out, and returns `true` if any is another writer's.
    fn give_up(&self, writer: u64, without: &BTreeSet<u64>) -> Result<bool, Refusal> {
        let mut others =
            without.iter().filter_map(|token| self.tokens.get(token)).filter(|token| token.writer != writer);
        let is_any = others.clone().next().is_some();
        require(others.all(|token| token.is_over), "a writer is given up before its deadline")?;
        Ok(is_any)
    }

    fn commit(&mut self, writer: u64, row: Row) -> Result<(), Refusal> {
        require(
            self.is_fenced(writer) || self.unprotected.contains(&writer),
            "a statement commits outside of a fence",
        )?;
        require(self.row.is_some() || row.is_none(), "a statement brings a row back")?;
        self.committed.insert(writer, row);
        self.change_row(row);
        Ok(())
    }

    fn insert(&mut self, writer: u64, row: u64) -> Result<(), Refusal> {
        require(self.row.is_none(), "a row is inserted over another")?;
        require(
            self.tokens.values().all(|token| token.writer != writer),
            "a writer of a session that is gone inserts it again",
        )?;
        self.committed.insert(writer, Some(row));
        self.change_row(Some(row));
        Ok(())
    }

    fn change_row(&mut self, row: Row) {
        self.row = row;
        let loads = self.loads.values_mut().flatten();
        loads.chain(self.leases.values_mut()).for_each(|rows| {
            rows.insert(row);
        });
    }

    fn publish(&mut self, writer: u64, row: u64) -> Result<(), Refusal> {
        let Cached::Fence(holders, dirty, placed_by) = &self.cache else {
            return Err("a value is published over something else than a fence");
        };
        let is_own = self.tokens.get(placed_by).is_some_and(|token| token.writer == writer);
        require(
            is_own && holders.len() == 1 && holders.contains(placed_by),
            "a writer publishes over the fence of others",
        )?;
        require(!dirty, "a writer publishes over a dirty fence")?;
        require(
            self.committed.get(&writer) == Some(&Some(row)),
            "a writer publishes what it has not written",
        )?;
        let removed = holders.clone();
        self.settle(&removed);
        self.cache = Cached::Value(row);
        Ok(())
    }

    fn leave(&mut self, writer: u64, without: &BTreeSet<u64>) -> Result<(), Refusal> {
        self.give_up(writer, without)?;
        let Cached::Fence(holders, dirty, _) = &mut self.cache else {
            return Err("a fence is left where there is none");
        };
        holders.retain(|holder| !without.contains(holder));
        require(!holders.is_empty(), "a fence without writers is left")?;
        *dirty = true;
        self.settle(without);
        Ok(())
    }

    fn clear(&mut self, writer: u64) -> Result<(), Refusal> {
        let Cached::Fence(holders, ..) = self.cache.clone() else {
            return Err("a fence is removed where there is none");
        };
        self.give_up(writer, &holders)?;
        self.settle(&holders);
        self.cache = Cached::Nothing;
        Ok(())
    }

    fn settle(&mut self, removed: &BTreeSet<u64>) {
        let settled = self.tokens.iter_mut().filter(|(token, _)| removed.contains(token));
        settled.for_each(|(_, token)| token.is_settled = true);
    }

    fn evict(&mut self) {
        if let Cached::Fence(holders, ..) = std::mem::take(&mut self.cache) {
            let owners: Vec<_> =
                holders.iter().filter_map(|token| self.tokens.get(token)).map(|token| token.writer).collect();
            owners.into_iter().for_each(|writer| self.expose(writer));
        }
    }

    fn end(&mut self) -> Result<(), Refusal> {
        if let Cached::Fence(holders, ..) = &self.cache {
            let is_over = |token: &u64| self.tokens.get(token).is_none_or(|token| token.is_over);
            require(holders.iter().all(is_over), "a fence ends before its deadline")?;
        }
        self.cache = Cached::Nothing;
        Ok(())
    }

    /// Notes that no fence keeps readers from what `writer` replaces.
    fn expose(&mut self, writer: u64) {
        self.unprotected.insert(writer);
        self.loads.values_mut().for_each(|rows| *rows = None);
    }

    fn answer(&mut self, load: u64, row: Row) -> Result<(), Refusal> {
        let rows = self.loads.remove(&load).ok_or("a load answers that does not run")?;
        require(rows.is_none_or(|rows| rows.contains(&row)), "a load shows a row from before it began")
    }
}
