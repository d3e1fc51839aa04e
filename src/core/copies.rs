//! What two devices report to each other about the assets that they hold.
//!
//! They compare the sets of hashes that they *know*. Each also reports which known hashes it does
//! not hold: its *absent* hashes. It holds all others. A device that holds everything reports none.
//!
//! P1  A peer counts as the holder of an asset only if that was confirmed: at one moment both devices
//!     knew the same hashes, and this device knew which of them were absent at the peer.
//! P2  The digest of the absent hashes is compared after each exchange. So a position in the peer's log
//!     need not be trusted, which a restored backup may have set back.

use std::collections::BTreeSet;

use crate::core::ids::Hash;
use crate::core::journal::set_hash::SetDigest;

/// The absent hashes of a device at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AbsentSet {
    /// The random id of the log of changes; positions in another log mean nothing.
    pub log: [u8; 16],
    /// The number of the newest change in the log.
    pub turn: u64,
    /// The digest of the absent hashes.
    pub digest: SetDigest,
}

/// A part of the changes of a device's absent hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbsentPage {
    /// The set as it was when this page was read.
    pub now: AbsentSet,
    /// Whether the page begins at the start of the log: the receiver first forgets what it knew of the
    /// sender's absent hashes.
    pub is_start: bool,
    /// Hashes that are absent, with their sizes as far as these are known.
    pub absent: Vec<SizedHash>,
    /// Hashes that are no longer absent.
    pub held: Vec<Hash>,
    /// The number of the last change that this page covers.
    pub next: u64,
    /// Whether the log has more changes.
    pub more: bool,
}

/// A hash with its size in bytes, if that is known.
pub type SizedHash = (Hash, Option<u64>);

/// Why a known asset is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Absence {
    /// The asset is wanted, and is requested as soon as a holder is connected.
    Missing,
    /// This device does not want the asset.
    Unwanted,
}

/// A place in the list of missing assets, which begins with those that have the fewest copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct MissingPlace {
    /// The number of copies on other devices.
    pub copies: u64,
    /// The sequence number in the index.
    pub seq: u64,
}

/// How many copies the group wants of each asset, and on how many sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiesGoal {
    /// The number of devices that should hold each asset.
    pub copies: u64,
    /// The number of different sites on which they should be. A device without a site counts as a site of
    /// its own.
    pub sites: u64,
}

impl Default for CopiesGoal {
    fn default() -> Self {
        Self { copies: 2, sites: 1 }
    }
}

/// How many assets have how many copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// The number of assets that this device knows.
    pub known: u64,
    /// The number of assets that no device is known to hold.
    pub nowhere: u64,
    /// The number of assets that exactly one device is known to hold.
    pub one_copy: u64,
    /// The number of assets with fewer copies, or on fewer sites, than the group wants.
    pub below_goal: u64,
    /// Those that have too few known copies, while a connected device has yet to say whether it holds
    /// them. They are not counted in the other numbers.
    pub unconfirmed: u64,
}

impl Census {
    /// Counts an asset that is on `copies` devices of the given sites. `may_have_more`: a device that
    /// is not counted may hold it, and is about to say so.
    pub fn count(
        &mut self,
        goal: CopiesGoal,
        copies: u64,
        sites: &BTreeSet<usize>,
        may_have_more: bool,
    ) {
        self.known += 1;
        let is_below = copies < goal.copies || (sites.len() as u64) < goal.sites;
        if may_have_more && (copies <= 1 || is_below) {
            self.unconfirmed += 1;
            return;
        }
        self.nowhere += u64::from(copies == 0);
        self.one_copy += u64::from(copies == 1);
        self.below_goal += u64::from(is_below);
    }
}
