//! The names that can-sync itself uses in a bound directory. All begin with `.can-sync`, are never
//! synchronised, and tell after a crash what a file is.
//!
//! ```text
//! .can-sync-folder                  the marker: which folder this directory is bound to
//! .can-sync-kept/RUN-KEY-N          what was replaced or removed, kept for a while
//! DIR/.can-sync-tmp-RUN-KEY-new     new content, being written: worthless after a crash
//! DIR/.can-sync-tmp-RUN-KEY-INODE   new content before it is exchanged with the file of this name,
//!                                   afterwards what was replaced: then the inode is another one
//! DIR/.can-sync-tmp-RUN-KEY-away-N  what was replaced or removed where it cannot be moved to the top
//! ```
//! `RUN` tells runs of the agent apart, `KEY` is the key of the path.

use crate::core::folder::path::PathKey;

/// The name of the marker.
pub const MARKER: &str = ".can-sync-folder";

/// The directory at the top where replaced content is kept.
pub(super) const KEPT: &str = ".can-sync-kept";

/// What the names of our own files begin with.
pub(super) const OWN: &[u8] = b".can-sync";

/// What the names of new content begin with.
const TEMP: &str = ".can-sync-tmp-";

/// How far a temporary file got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The file is being written.
    New,
    /// The file is complete and has this inode.
    Complete(u64),
    /// The file is not new content: it was taken away from its name. The number tells it from others.
    Away(u64),
}

/// The parts of a temporary file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Temp {
    pub(super) run: u64,
    pub(super) key: PathKey,
    pub(super) stage: Stage,
}

impl Temp {
    pub(super) fn name(&self) -> String {
        let Self { run, key, stage } = self;
        let key = data_encoding::HEXLOWER.encode(&key.0);
        match stage {
            Stage::New => format!("{TEMP}{run:016x}-{key}-new"),
            Stage::Complete(inode) => format!("{TEMP}{run:016x}-{key}-{inode:x}"),
            Stage::Away(count) => format!("{TEMP}{run:016x}-{key}-away-{count:x}"),
        }
    }

    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        let rest = std::str::from_utf8(name).ok()?.strip_prefix(TEMP)?;
        let (run, key, stage) = parts(rest)?;
        let stage = match stage {
            "new" => Stage::New,
            other => match other.strip_prefix("away-") {
                Some(count) => Stage::Away(u64::from_str_radix(count, 16).ok()?),
                None => Stage::Complete(u64::from_str_radix(other, 16).ok()?),
            },
        };
        Some(Self { run, key, stage })
    }
}

/// The name of kept content within [`KEPT`].
pub(super) fn kept_name(run: u64, key: PathKey, count: u64) -> String {
    format!("{run:016x}-{}-{count:x}", data_encoding::HEXLOWER.encode(&key.0))
}

/// Run and key in the name of kept content.
pub(super) fn parse_kept(name: &[u8]) -> Option<(u64, PathKey)> {
    let (run, key, _) = parts(std::str::from_utf8(name).ok()?)?;
    Some((run, key))
}

fn parts(text: &str) -> Option<(u64, PathKey, &str)> {
    let (run, rest) = text.split_once('-')?;
    let (key, last) = rest.split_once('-')?;
    let key = data_encoding::HEXLOWER.decode(key.as_bytes()).ok()?;
    Some((u64::from_str_radix(run, 16).ok()?, PathKey(key.try_into().ok()?), last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_temporary_file_tells_what_it_is() {
        for stage in [Stage::New, Stage::Complete(7), Stage::Away(u64::MAX)] {
            let temp = Temp { run: 7, key: PathKey([0xab; 16]), stage };
            assert_eq!(Temp::parse(temp.name().as_bytes()), Some(temp));
            assert!(temp.name().len() < 100);
        }
        for other in [&b".can-sync-tmp-"[..], b".can-sync-tmp-7-ab-new", b"a", b"\xff"] {
            assert_eq!(Temp::parse(other), None);
        }
        let kept = kept_name(9, PathKey([1; 16]), 300);
        assert_eq!(parse_kept(kept.as_bytes()), Some((9, PathKey([1; 16]))));
    }
}
