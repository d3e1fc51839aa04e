//! The databases of a device, opened together.

use anyhow::{Context as _, Result};

use super::copies::Copies;
use super::home::Home;
use super::identity::Identity;
use super::index::Index;
use super::journal::Journal;
use super::partials::Partials;
use crate::clock::{wall_ms, wall_now};
use crate::core::pairing::shown_name;

/// The databases of a device. Folders have one of their own, see [`crate::folders`].
#[derive(Debug)]
pub struct Databases {
    /// The group, its records and events.
    pub journal: Journal,
    /// The hashes that the store knows.
    pub index: Index,
    /// Large transfers under way.
    pub partials: Partials,
    /// What this device wants.
    pub copies: Copies,
}

impl Databases {
    /// Opens them. A journal without a group founds one, under the name of this host.
    /// `is_journal_lost`: the device has been in a group, and the journal is missing.
    ///
    /// # Errors
    /// One of them is unusable; the error names it.
    pub fn open(home: &Home, identity: &Identity, is_journal_lost: bool) -> Result<Self> {
        let mut journal = Journal::open(&home.journal_db_path(), identity, rand::random())
            .context("opening the journal")?;
        if journal.group().is_none() {
            let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let name = shown_name(&host_name, &identity.node_id);
            match is_journal_lost {
                false => journal.found(&name, wall_ms()),
                true => journal.found_anew(&name, wall_ms()),
            }
            .context("beginning the journal")?;
        }
        let index = Index::open(&home.index_db_path())?;
        let partials = Partials::open(&home.partials_dir(), wall_now())
            .with_context(|| format!("opening {}", home.partials_dir().display()))?;
        let copies = Copies::open(&home.copies_db_path())?;
        Ok(Self { journal, index, partials, copies })
    }
}
