//! A device: its journal, a directory, and the bases of its paths.

use std::collections::{BTreeMap, BTreeSet};

use can_sync::core::folder::path::FolderPath;
use can_sync::core::folder::resolve::make_way;
use can_sync::core::folder::three_way::{Action, DiskSays, Edit, Mode, decide};
use can_sync::core::folder::version::{Content, ShortId, Vector, Version};
use can_sync::core::ids::Hash;

use super::Mutant;
use super::disk::{Disk, is_below, parents};
use super::journal::Journal;

#[derive(Debug, Clone, Default)]
pub(crate) struct Device {
    pub(crate) id: u64,
    pub(crate) log: usize,
    pub(crate) journal: Journal,
    pub(crate) disk: Disk,
    pub(crate) bases: BTreeMap<FolderPath, Version>,
    pub(crate) skew_ms: u64,
    pub(crate) writes: usize,
    pub(crate) mutant: Mutant,
}

/// What a user does to a disk around a path.
pub(crate) type User<'a> = &'a mut dyn FnMut(&mut Disk, &FolderPath);

/// What happens in the middle of a step.
pub(crate) struct Middle<'a> {
    /// The process is killed between the two halves of the step.
    pub(crate) is_killed: bool,
    /// What a user does between the decision and the exchange.
    pub(crate) user: Option<User<'a>>,
}

impl Device {
    fn who(&self) -> (usize, ShortId) {
        (self.log, ShortId(self.id))
    }

    /// All paths that are known anywhere.
    pub(crate) fn paths(&self) -> Vec<FolderPath> {
        let all: BTreeSet<&FolderPath> = self
            .journal
            .cells
            .keys()
            .chain(self.disk.nodes.keys())
            .chain(self.bases.keys())
            .collect();
        all.into_iter().cloned().collect()
    }

    pub(crate) fn resolve(&mut self, now_ms: u64) -> bool {
        let wrote = self.journal.resolve(self.who(), now_ms + self.skew_ms, self.mutant);
        self.writes += usize::from(wrote);
        wrote
    }

    /// Does what is to be done about one path. Returns whether something was done.
    pub(crate) fn step(
        &mut self,
        path: &FolderPath,
        now_ms: u64,
        journaled: &mut BTreeSet<Hash>,
        middle: Middle<'_>,
    ) -> bool {
        let (base, journal) = (self.bases.get(path).cloned(), self.journal.at(path).cloned());
        let seen = self.disk.says(path);
        let was = base.as_ref().map_or(Content::Absent, |base| base.content.clone());
        let says = match &seen {
            DiskSays::Content(content) if *content == was => DiskSays::Base,
            other => other.clone(),
        };
        let mut action = decide(Mode::TwoWay, base.as_ref(), &says, journal.as_ref());
        if self.mutant == Mutant::UnknownRemoved && journal.is_none() && says == DiskSays::Base {
            if was != Content::Absent {
                self.disk.remove(path);
                self.bases.remove(path);
            }
            action = Action::Nothing;
        }
        // What is left out is looked at again and again.
        let is_still = action == Action::Nothing || self.disk.is_left_out(path);
        if let (Some(base), Some(journal), false) = (&base, &journal, is_still)
            && action.must_keep(base, journal)
            && self.mutant != Mutant::BasesTrusted
        {
            self.journal.keep(base.clone(), now_ms, self.mutant);
        }
        match action {
            Action::Nothing | Action::Hold | Action::SetAside | Action::LeaveExtra => false,
            Action::Adopt => {
                self.bases.extend(journal.map(|journal| (path.clone(), journal)));
                true
            }
            Action::Touch | Action::Apply => {
                let journal = journal.expect("it is applied");
                if let Some(user) = middle.user {
                    user(&mut self.disk, path);
                }
                // The exchange shows what was there: no other than what was seen is replaced.
                if self.disk.says(path) != seen && self.mutant != Mutant::BlindExchange {
                    return true;
                }
                if self.mutant == Mutant::BaseFirst {
                    self.bases.insert(path.clone(), journal.clone());
                    if middle.is_killed {
                        return true;
                    }
                }
                match self.apply(path, &journal, now_ms, journaled) {
                    Placed::Done if !middle.is_killed => {
                        self.bases.insert(path.clone(), journal);
                        true
                    }
                    Placed::Done | Placed::MadeWay => true,
                    Placed::Waits => false,
                }
            }
            Action::Write(Edit { content, vector, before }) => {
                let version = self.version(path, content, vector);
                let events = before.into_iter().collect();
                let mut written = self.write(vec![version], true, events, now_ms, journaled);
                if !middle.is_killed {
                    self.bases.insert(path.clone(), written.remove(0));
                }
                true
            }
            Action::WriteBase => {
                self.write(base.into_iter().collect(), false, vec![], now_ms, journaled);
                true
            }
        }
    }

    fn version(&self, path: &FolderPath, content: Content, vector: Vector) -> Version {
        let vector = match self.mutant {
            Mutant::NoVectors => Vector::default(),
            _ => vector,
        };
        Version { path: path.clone(), content, vector, device_name: format!("device {}", self.id) }
    }

    fn write(
        &mut self,
        versions: Vec<Version>,
        are_changes: bool,
        events: Vec<Version>,
        now_ms: u64,
        journaled: &mut BTreeSet<Hash>,
    ) -> Vec<Version> {
        self.writes += 1;
        journaled.extend(versions.iter().filter_map(|version| hash(&version.content)));
        let (who, now_ms) = (self.who(), now_ms + self.skew_ms);
        self.journal.write(who, now_ms, versions, are_changes, events, self.mutant)
    }

    /// Brings a version to the disk.
    fn apply(
        &mut self,
        path: &FolderPath,
        version: &Version,
        now_ms: u64,
        journaled: &mut BTreeSet<Hash>,
    ) -> Placed {
        if let Some(node) = self.disk.nodes.get(path).and_then(hash) {
            assert!(journaled.contains(&node), "{path} is replaced and nobody has its content");
        }
        if version.is_absent() {
            assert!(!self.disk.has_entries(path), "{path} is removed with its entries");
            self.disk.remove(path);
            self.remove_emptied(path);
            return Placed::Done;
        }
        for parent in parents(path) {
            let Some(node) = self.disk.nodes.get(&parent) else { continue };
            if *node != Content::Directory {
                return self.make_way(&parent, now_ms, journaled);
            }
        }
        if self.disk.is_left_out(path) {
            return Placed::Waits;
        }
        if self.disk.has_entries(path) && version.content != Content::Directory {
            let is_alive = |(other, (_, version)): (&FolderPath, &(_, Version))| {
                is_below(other, path) && !version.is_absent()
            };
            return match self.journal.cells.iter().any(is_alive) {
                true => self.make_way(path, now_ms, journaled),
                false => Placed::Waits,
            };
        }
        self.disk.put(path, version.content.clone());
        Placed::Done
    }

    /// Moves a file or link, which is in the way of a directory, out of the way.
    fn make_way(
        &mut self,
        path: &FolderPath,
        now_ms: u64,
        journaled: &mut BTreeSet<Hash>,
    ) -> Placed {
        let version = self.journal.at(path).cloned();
        let is_in_the_way =
            |version: &Version| !matches!(version.content, Content::Absent | Content::Directory);
        let version = version.filter(is_in_the_way);
        let Some(version) = version.filter(|_| self.mutant != Mutant::NobodyMakesWay) else {
            return Placed::Waits;
        };
        let [copy, removal] = make_way(&version);
        self.write(vec![copy, removal], false, vec![version], now_ms, journaled);
        Placed::MadeWay
    }

    /// Removes the directories that became empty, unless the folder has them as empty ones.
    fn remove_emptied(&mut self, path: &FolderPath) {
        for parent in parents(path).iter().rev() {
            let is_kept = self
                .journal
                .at(parent)
                .is_some_and(|version| version.content == Content::Directory);
            let is_directory = self.disk.nodes.get(parent) == Some(&Content::Directory);
            if is_kept || !is_directory || self.disk.has_entries(parent) {
                return;
            }
            self.disk.remove(parent);
        }
    }
}

enum Placed {
    Done,
    MadeWay,
    Waits,
}

pub(crate) fn hash(content: &Content) -> Option<Hash> {
    match content {
        Content::File { hash, .. } => Some(*hash),
        Content::Symlink { target } => Some(Hash(*blake3::hash(target).as_bytes())),
        Content::Absent | Content::Directory | Content::Later(_) => None,
    }
}
