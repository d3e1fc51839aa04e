//! Finds the device or the asset that a person means: one rule each, for every command.
//!
//! L1  A device is named by its node ID, by its name, or by the start of its node ID.
//! L2  An asset is named by its hash, the start of its hash or its name, with as much of its path as
//!     is needed; only if there is none, by the start of its name or by a glob. See [`AssetText`].
//! L3  A text that matches several is refused: a device whose name looks like the start of another
//!     device's node ID is not preferred over it, nor the other way round. So it is with the names
//!     and hashes of assets.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use crate::core::ids::{Hash, NodeId};
use crate::core::limits::ASSET_PATH_BYTES_MAX;
use crate::core::names::{NamePattern, full_name};

/// The fewest characters of a node ID; fewer are more likely a mistyped name.
pub const ID_PREFIX_CHARS_MIN: usize = 4;

/// The fewest characters of a hash; fewer are more likely a slip.
pub const HASH_PREFIX_CHARS_MIN: usize = 4;

/// The most candidates listed when a text matches several.
pub const CANDIDATES_MAX: usize = 5;

/// Why a text does not name exactly one device or asset.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LookupError {
    /// The text cannot be a name.
    #[error("{0}")]
    Malformed(String),
    /// Nothing has this name.
    #[error("{0}")]
    Unknown(String),
    /// Several match.
    #[error("{0}")]
    Ambiguous(String),
}

/// The device that `text` names. `describe` returns a device's node ID and its name.
pub fn device<'a, T>(
    text: &str,
    devices: &'a [T],
    describe: impl Fn(&T) -> (NodeId, &str),
) -> Result<&'a T, LookupError> {
    if text.is_empty() {
        return Err(LookupError::Malformed("the device's name is empty".into()));
    }
    let id = text.to_ascii_lowercase();
    if let Some(device) = devices.iter().find(|device| describe(device).0.to_string() == id) {
        return Ok(device);
    }
    let is_prefix = id.len() >= ID_PREFIX_CHARS_MIN;
    let fits = |device: &&T| {
        let (node_id, name) = describe(device);
        name == text || is_prefix && node_id.to_string().starts_with(&id)
    };
    let found: Vec<_> = devices.iter().filter(fits).collect();
    match found[..] {
        [device] => Ok(device),
        [] => Err(LookupError::Unknown(format!(
            "no device is called {text:?} or has a node ID that starts so"
        ))),
        _ => {
            let candidates = found.iter().map(|device| {
                let (node_id, name) = describe(device);
                format!("{name} ({node_id})")
            });
            let candidates = listed(candidates, found.len());
            Err(LookupError::Ambiguous(format!(
                "{text:?} could be any of these devices, give the node ID: {candidates}"
            )))
        }
    }
}

/// The only one of `all` whose id is `text` or starts so. `what` names their kind.
pub fn start<'a, T>(
    text: &str,
    what: &str,
    all: &'a [T],
    id: impl Fn(&T) -> &str,
) -> Result<&'a T, LookupError> {
    if let Some(found) = all.iter().find(|one| id(one) == text) {
        return Ok(found);
    }
    let starts = |one: &&T| !text.is_empty() && id(one).starts_with(text);
    let found: Vec<_> = all.iter().filter(starts).collect();
    match found[..] {
        [one] => Ok(one),
        [] => Err(LookupError::Unknown(format!("no {what} has an id that starts with {text:?}"))),
        _ => {
            let candidates = listed(found.iter().map(|one| id(one).to_owned()), found.len());
            let text = format!("{text:?} could be any {what} of these: {candidates}");
            Err(LookupError::Ambiguous(text))
        }
    }
}

/// A hash or the start of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(pattern = "^[0-9a-fA-F]{4,64}$")]
pub struct HashPrefix(String);

impl From<Hash> for HashPrefix {
    fn from(hash: Hash) -> Self {
        Self(hash.to_string())
    }
}

impl TryFrom<String> for HashPrefix {
    type Error = LookupError;

    fn try_from(text: String) -> Result<Self, LookupError> {
        Self::parse(&text)
    }
}

impl HashPrefix {
    /// Parses what a person typed.
    pub fn parse(text: &str) -> Result<Self, LookupError> {
        let prefix = text.trim().to_ascii_lowercase();
        let is_hex = prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        let chars_max = 2 * Hash::LEN;
        if !is_hex || !(HASH_PREFIX_CHARS_MIN..=chars_max).contains(&prefix.len()) {
            return Err(LookupError::Malformed(format!(
                "expected a hash of {chars_max} hex characters or at least its first \
                 {HASH_PREFIX_CHARS_MIN}, got {text:?}"
            )));
        }
        Ok(Self(prefix))
    }

    /// The prefix in lower-case hex.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash, if this is a whole one.
    pub fn whole(&self) -> Option<Hash> {
        self.0.parse().ok()
    }

    /// The first and the last hash that start so.
    pub fn range(&self) -> (Hash, Hash) {
        let fill = |digit: u8| {
            let mut hash = [0; Hash::LEN];
            for (at, byte) in hash.iter_mut().enumerate() {
                let digits = [2 * at, 2 * at + 1].map(|at| match self.0.as_bytes().get(at) {
                    Some(digit @ b'0'..=b'9') => digit - b'0',
                    Some(letter) => letter - b'a' + 10,
                    None => digit,
                });
                *byte = (digits[0] << 4) | digits[1];
            }
            Hash(hash)
        };
        (fill(0), fill(0xf))
    }

    /// Returns the only asset in `found`, the assets whose hashes start with this prefix.
    pub fn only<T>(&self, found: Vec<T>, hash: impl Fn(&T) -> Hash) -> Result<T, LookupError> {
        let (count, prefix) = (found.len(), &self.0);
        let candidates = listed(found.iter().map(|asset| hash(asset).to_string()), count);
        let mut found = found.into_iter();
        match (found.next(), count) {
            (Some(asset), 1) => Ok(asset),
            (None, _) => Err(LookupError::Unknown(format!("no asset's hash starts with {prefix}"))),
            _ => Err(LookupError::Ambiguous(format!(
                "several assets start with {prefix}, give more of the hash: {candidates}"
            ))),
        }
    }
}

/// What a person typed to name an asset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetText(String);

/// What an asset may be named by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetTier {
    /// The asset's hash starts with this prefix.
    pub hash: Option<HashPrefix>,
    /// The asset's name is one of these.
    pub name: NamePattern,
}

/// An asset that a text may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetCandidate {
    /// The asset's hash.
    pub hash: Hash,
    /// The folder it was added from.
    pub path: String,
    /// The asset's name.
    pub name: String,
}

impl AssetText {
    /// Parses what a person typed.
    pub fn parse(text: &str) -> Result<Self, LookupError> {
        if text.trim().is_empty() {
            return Err(LookupError::Malformed("the asset's name is empty".into()));
        }
        if text.len() > 2 * ASSET_PATH_BYTES_MAX {
            return Err(LookupError::Malformed(format!(
                "the asset's name has {} bytes: expected a hash, or a path and a name",
                text.len()
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// The hash, if this is a whole one: then nothing else is meant.
    pub fn whole_hash(&self) -> Option<Hash> {
        HashPrefix::parse(&self.0).ok()?.whole()
    }

    /// What is tried, the best first. The first with a match decides.
    pub fn tiers(&self) -> [AssetTier; 2] {
        let loose = match NamePattern::is_glob(&self.0) {
            true => NamePattern::glob(&self.0),
            false => NamePattern::start(&self.0),
        };
        [
            AssetTier { hash: HashPrefix::parse(&self.0).ok(), name: NamePattern::exact(&self.0) },
            AssetTier { hash: None, name: loose },
        ]
    }

    /// Returns the only asset of `found`, the matches of the first tier that has any.
    pub fn only<T>(
        &self,
        mut found: Vec<T>,
        describe: impl Fn(&T) -> AssetCandidate,
    ) -> Result<T, LookupError> {
        found.sort_by_key(|asset| describe(asset).hash);
        found.dedup_by_key(|asset| describe(asset).hash);
        let text = &self.0;
        let candidates = found.iter().map(|asset| {
            let AssetCandidate { hash, path, name } = describe(asset);
            match name.is_empty() {
                true => hash.short(),
                false => format!("{} {}", hash.short(), full_name(&path, &name)),
            }
        });
        let candidates = listed(candidates, found.len());
        match found.len() {
            0 => Err(LookupError::Unknown(format!(
                "no asset is called {text:?}, nor does a name or a hash start so"
            ))),
            1 => Ok(found.remove(0)),
            _ => Err(LookupError::Ambiguous(format!(
                "{text:?} could be any of these assets, give more of the path or the hash: \
                 {candidates}"
            ))),
        }
    }
}

fn listed(candidates: impl Iterator<Item = String>, count: usize) -> String {
    let more = if count > CANDIDATES_MAX { ", …" } else { "" };
    candidates.take(CANDIDATES_MAX).collect::<Vec<_>>().join(", ") + more
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DEVICES: [(NodeId, &str); 4] = [
        (node_id([0xaa, 0x11]), "desk"),
        (node_id([0xaa, 0x22]), "phone"),
        (node_id([0xcc, 0x33]), "aa22"),
        (node_id([0xdd, 0x44]), "ab"),
    ];

    const fn node_id(start: [u8; 2]) -> NodeId {
        let mut bytes = [0; NodeId::LEN];
        (bytes[0], bytes[1]) = (start[0], start[1]);
        NodeId(bytes)
    }

    fn meant(text: &str) -> Result<&'static str, LookupError> {
        device(text, &DEVICES, |(node_id, name)| (*node_id, name)).map(|found| found.1)
    }

    #[test]
    fn a_device_is_meant_by_its_name_or_its_node_id_or_the_start_of_it() {
        assert_eq!(meant("desk"), Ok("desk"));
        assert_eq!(meant(&DEVICES[1].0.to_string().to_uppercase()), Ok("phone"));
        assert_eq!(meant("aa11"), Ok("desk"));
        assert_eq!(meant("ab"), Ok("ab"));
        for text in ["aa1", "aa", "tv", "Desk"] {
            assert!(matches!(meant(text), Err(LookupError::Unknown(_))), "{text}");
        }
        assert!(matches!(meant(""), Err(LookupError::Malformed(_))));
    }

    #[test]
    fn a_device_named_like_the_start_of_anothers_node_id_is_ambiguous() {
        let Err(LookupError::Ambiguous(text)) = meant("aa22") else { panic!("it is taken") };
        assert!(text.contains("phone (aa2200") && text.contains("aa22 (cc3300"), "{text}");
    }

    #[test]
    fn an_asset_is_meant_by_its_hash_or_the_only_start_of_it() {
        let prefix = HashPrefix::parse(" ABCD\n").unwrap();
        assert_eq!((prefix.as_str(), prefix.whole()), ("abcd", None));
        assert_eq!(HashPrefix::parse(&"ab".repeat(32)).unwrap().whole(), Some(Hash([0xab; 32])));
        let hashes = |count: u8| (0..count).map(|n| Hash([n; 32])).collect::<Vec<_>>();
        assert_eq!(prefix.only(hashes(1), |hash| *hash), Ok(Hash([0; 32])));
        assert!(matches!(prefix.only(hashes(0), |hash| *hash), Err(LookupError::Unknown(_))));
        let Err(LookupError::Ambiguous(text)) = prefix.only(hashes(9), |hash| *hash) else {
            panic!("it is taken")
        };
        assert!(text.ends_with(", …") && text.matches("0404").count() > 0, "{text}");
        for text in ["", "abc", "xyzw", &"a".repeat(65)] {
            assert!(matches!(HashPrefix::parse(text), Err(LookupError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn a_prefix_is_a_range_of_hashes() {
        let (first, last) = HashPrefix::parse("abcde").unwrap().range();
        assert_eq!((first.0[..4].to_vec(), first.0[31]), (vec![0xab, 0xcd, 0xe0, 0], 0));
        assert_eq!((last.0[..4].to_vec(), last.0[31]), (vec![0xab, 0xcd, 0xef, 0xff], 0xff));
    }

    #[test]
    fn an_asset_is_meant_by_its_name_or_the_only_start_of_it_and_the_best_match_decides() {
        let assets = [
            (0xaa, "docs", "a.txt"),
            (0xbb, "docs", "a.txt.bak"),
            (0xcc, "other", "readme"),
            (0xdd, "more/docs", "readme"),
            (0xee, "", "cccc"),
            (0xab, "", "50%"),
        ];
        let assets = assets.map(|(n, path, name)| AssetCandidate {
            hash: Hash([n; 32]),
            path: path.to_owned(),
            name: name.to_owned(),
        });
        let meant = |text: &str| {
            let text = AssetText::parse(text).unwrap();
            let of_tier = |tier: &AssetTier| -> Vec<AssetCandidate> {
                let fits = |asset: &&AssetCandidate| {
                    let range = tier.hash.as_ref().map(HashPrefix::range);
                    range.is_some_and(|(first, last)| (first..=last).contains(&asset.hash))
                        || tier.name.fits(&asset.path, &asset.name)
                };
                assets.iter().filter(fits).cloned().collect()
            };
            let tiers = text.tiers().map(|tier| of_tier(&tier));
            let found = tiers.into_iter().find(|found| !found.is_empty()).unwrap_or_default();
            text.only(found, Clone::clone).map(|asset| asset.hash.0[0])
        };
        for (text, hash) in [
            ("a.txt", 0xaa),
            ("a.txt.", 0xbb),
            ("*.bak", 0xbb),
            ("other/readme", 0xcc),
            ("docs/readme", 0xdd),
            ("docs/read", 0xdd),
            ("more/docs/readme", 0xdd),
            ("aaaa", 0xaa),
            ("50%", 0xab),
        ] {
            assert_eq!(meant(text), Ok(hash), "{text}");
        }
        for text in ["readme", "a.tx", "docs/*", "cccc"] {
            let Err(LookupError::Ambiguous(said)) = meant(text) else { panic!("{text} is one") };
            assert!(said.contains("give more"), "{said}");
        }
        assert!(meant("readme").unwrap_err().to_string().contains("dddddddddd more/docs/readme"));
        for text in ["b.txt", "ADME", "oc/readme", "aaa"] {
            assert!(matches!(meant(text), Err(LookupError::Unknown(_))), "{text}");
        }
        for text in ["", " ", &"x".repeat(9_000)] {
            assert!(matches!(AssetText::parse(text), Err(LookupError::Malformed(_))));
        }
    }
}
