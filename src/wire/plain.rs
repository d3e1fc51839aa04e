//! The messages that only the plain protocol, `can-sync/1`, uses: pages of a whole set,
//! acknowledgements that name their assets, and metadata. Its contents are in the frames of [`super::batch`],
//! under [`Naming::Plain`](super::batch::Naming::Plain).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::batch::{Verdict, decode_verdict, hash, malformed};
use crate::core::ids::Hash;
use crate::core::journal::op::Value;
use crate::core::journal::stamp::Hlc;
use crate::core::journal::told::{Told, ToldTag, ToldValue};
use crate::core::limits::{
    HASHES_PER_FRAME_MAX, META_ASSETS_MAX, META_FIELDS_MAX, META_TAGS_MAX, OFFER_ENTRIES_MAX,
};
use crate::wire::proto::peer;
use crate::wire::{Repeated, WireError, bounded, parse, parse_counted};

const META_UPDATE: [Repeated; 3] = [
    Repeated { path: &[1], max: META_ASSETS_MAX },
    Repeated { path: &[1, 2], max: META_ASSETS_MAX * META_FIELDS_MAX },
    Repeated { path: &[1, 3], max: META_TAGS_MAX },
];

/// A page of a whole set in the plain protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetPage {
    /// The hashes, strictly ascending, at most [`HASHES_PER_FRAME_MAX`].
    pub hashes: Vec<Hash>,
    /// Whether another page follows.
    pub more: bool,
}

impl SetPage {
    /// Reads a page whose hashes must all be above `after`.
    ///
    /// # Errors
    /// [`WireError`] when it is malformed, too long, out of order, or empty with more to follow.
    pub fn decode(payload: Bytes, after: Option<Hash>) -> Result<Self, WireError> {
        let page: peer::Page = parse("Page", payload, HASHES_PER_FRAME_MAX)?;
        bounded("Page.hashes", page.hashes.len() as u64, HASHES_PER_FRAME_MAX as u64)?;
        let mut above = after;
        let mut hashes = Vec::with_capacity(page.hashes.len());
        for bytes in &page.hashes {
            let hash = hash("Page.hashes", bytes)?;
            if above.is_some_and(|above| hash <= above) {
                return Err(malformed("Page.hashes", format!("{hash} is out of order")));
            }
            above = Some(hash);
            hashes.push(hash);
        }
        if page.more && hashes.is_empty() {
            return Err(malformed("Page.more", "an empty page that promises more"));
        }
        Ok(Self { hashes, more: page.more })
    }

    /// The message for this page.
    pub fn encode(&self) -> peer::Page {
        let hashes = self.hashes.iter().map(|h| Bytes::copy_from_slice(h.as_bytes()));
        peer::Page { round: 0, hashes: hashes.collect(), more: self.more, next_seq: 0 }
    }
}

/// Reads an Ack of the plain protocol: a verdict by hash for each asset, at most
/// [`OFFER_ENTRIES_MAX`].
///
/// # Errors
/// [`WireError`] when it is malformed or too long.
pub fn decode_plain_ack(payload: Bytes) -> Result<Vec<(Hash, Verdict)>, WireError> {
    let ack: peer::Ack = parse("Ack", payload, OFFER_ENTRIES_MAX)?;
    bounded("Ack.entries", ack.entries.len() as u64, OFFER_ENTRIES_MAX as u64)?;
    let verdicts = ack.entries.into_iter().map(|entry| {
        let hash = hash("Ack.entries.hash", &entry.hash)?;
        Ok((hash, decode_verdict(entry)?))
    });
    verdicts.collect()
}

/// Reads metadata: each asset, field and tag once.
///
/// # Errors
/// [`WireError`] when it is malformed, too long, or names something twice.
pub fn decode_meta(payload: Bytes) -> Result<Vec<Told>, WireError> {
    let update: peer::MetaUpdate = parse_counted("MetaUpdate", payload, &META_UPDATE)?;
    let mut seen = BTreeSet::new();
    let assets = update.assets.into_iter().map(|asset| {
        let told = told_from_wire(asset)?;
        match seen.insert(told.hash) {
            true => Ok(told),
            false => Err(twice("MetaUpdate.assets", told.hash)),
        }
    });
    assets.collect()
}

/// The message that tells these metadata.
pub fn encode_meta(told: &[Told]) -> peer::MetaUpdate {
    peer::MetaUpdate { assets: told.iter().map(told_to_wire).collect() }
}

fn told_from_wire(asset: peer::AssetMeta) -> Result<Told, WireError> {
    let hash = hash("AssetMeta.hash", &asset.hash)?;
    bounded("AssetMeta.fields", asset.fields.len() as u64, META_FIELDS_MAX as u64)?;
    let (mut fields, mut tags) = (BTreeMap::new(), BTreeMap::new());
    for field in asset.fields {
        let value = ToldValue { value: field.value.map(value_from_wire), at: stamp(field.stamp)? };
        if fields.insert(field.name, value).is_some() {
            return Err(twice("AssetMeta.fields", hash));
        }
    }
    for tag in asset.tags {
        let told = ToldTag { removed: tag.removed, at: stamp(tag.stamp)? };
        if tags.insert(tag.tag, told).is_some() {
            return Err(twice("AssetMeta.tags", hash));
        }
    }
    Ok(Told { hash, fields, tags })
}

fn told_to_wire(told: &Told) -> peer::AssetMeta {
    let fields = told.fields.iter().map(|(name, told)| peer::MetaField {
        name: name.clone(),
        value: told.value.as_ref().and_then(value_to_wire),
        stamp: told.at.0,
    });
    let tags = told.tags.iter().map(|(tag, told)| peer::MetaTag {
        tag: tag.clone(),
        removed: told.removed,
        stamp: told.at.0,
    });
    peer::AssetMeta {
        hash: Bytes::copy_from_slice(told.hash.as_bytes()),
        fields: fields.collect(),
        tags: tags.collect(),
    }
}

fn value_from_wire(value: peer::meta_field::Value) -> Value {
    use peer::meta_field::Value as Wire;
    match value {
        Wire::Flag(flag) => Value::Bool(flag),
        Wire::Number(number) => Value::Int(number),
        Wire::Text(text) => Value::Text(text),
    }
}

/// `None` for kinds that no field of an asset has.
fn value_to_wire(value: &Value) -> Option<peer::meta_field::Value> {
    use peer::meta_field::Value as Wire;
    match value {
        Value::Bool(flag) => Some(Wire::Flag(*flag)),
        Value::Int(number) => Some(Wire::Number(*number)),
        Value::Text(text) => Some(Wire::Text(text.clone())),
        Value::Double(_) | Value::Bytes(_) => None,
    }
}

fn stamp(stamp: u64) -> Result<Hlc, WireError> {
    bounded("a stamp", stamp, Hlc::MAX.0)?;
    Ok(Hlc(stamp))
}

fn twice(what: &'static str, hash: Hash) -> WireError {
    malformed(what, format!("something twice, of {}", hash.short()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::core::limits::CONTROL_FRAME_BYTES_MAX;
    use crate::wire::batch::encode_ack;

    fn bytes(message: &impl Message) -> Bytes {
        message.encode_to_vec().into()
    }

    fn hash_of(n: u64) -> Hash {
        let mut hash = [0; 32];
        hash[24..].copy_from_slice(&n.to_be_bytes());
        Hash(hash)
    }

    #[test]
    fn the_longest_page_fits_its_frame() {
        let hashes = vec![hash_of(u64::MAX); HASHES_PER_FRAME_MAX];
        let page = SetPage { hashes, more: true }.encode();
        assert!(page.encoded_len() <= CONTROL_FRAME_BYTES_MAX as usize);
    }

    #[test]
    fn a_plain_ack_names_its_assets() {
        let verdicts = [Verdict::Stored, Verdict::Later("full".into())];
        let named = verdicts.iter().enumerate();
        let named = named.map(|(n, v)| (Some(hash_of(n as u64)), v));
        let read = decode_plain_ack(bytes(&encode_ack(named))).unwrap();
        assert_eq!(read[1], (hash_of(1), Verdict::Later("full".into())));
        assert!(decode_plain_ack(bytes(&encode_ack([(None, &Verdict::Stored)]))).is_err());
    }

    #[test]
    fn the_pages_of_a_set_must_ascend() {
        let [a, b] = [hash_of(1), hash_of(2)];
        let read = |hashes: &[Hash], more, after| {
            SetPage::decode(bytes(&SetPage { hashes: hashes.to_vec(), more }.encode()), after)
        };
        assert_eq!(read(&[a, b], true, None).unwrap().hashes, [a, b]);
        assert!(read(&[b], false, Some(a)).is_ok());
        assert!(read(&[], false, Some(a)).is_ok());
        assert!(read(&[b, a], false, None).is_err());
        assert!(read(&[a, a], false, None).is_err());
        assert!(read(&[a], false, Some(a)).is_err());
        assert!(read(&[], true, None).is_err());
    }

    fn told(tags: usize) -> Told {
        let fields = [
            ("description", Some(Value::Text("cat".into()))),
            ("trashed", Some(Value::Bool(true))),
            ("modified_ms", Some(Value::Int(-5))),
            ("name", None),
        ];
        let fields = fields.into_iter().map(|(name, value)| {
            let at = Hlc(7);
            (name.to_owned(), ToldValue { value, at })
        });
        let tag = |n: usize| (n.to_string(), ToldTag { removed: n % 2 == 1, at: Hlc(n as u64) });
        Told { hash: hash_of(1), fields: fields.collect(), tags: (0..tags).map(tag).collect() }
    }

    #[test]
    fn metadata_come_back_as_they_were_told() {
        let all = vec![told(3), Told { hash: hash_of(2), ..told(META_TAGS_MAX - 3) }];
        assert_eq!(decode_meta(bytes(&encode_meta(&all))).unwrap(), all);
        assert_eq!(decode_meta(Bytes::new()).unwrap(), []);
    }

    #[test]
    fn metadata_that_name_something_twice_or_too_much_are_refused() {
        let refused = |update: peer::MetaUpdate| decode_meta(bytes(&update)).is_err();
        let asset = || encode_meta(&[told(2)]).assets.remove(0);
        assert!(refused(peer::MetaUpdate { assets: vec![asset(), asset()] }));
        for what in ["field", "tag", "stamp"] {
            let mut asset = asset();
            match what {
                "field" => asset.fields.push(asset.fields[0].clone()),
                "tag" => asset.tags.push(asset.tags[0].clone()),
                _ => asset.tags[0].stamp = u64::MAX,
            }
            assert!(refused(peer::MetaUpdate { assets: vec![asset] }), "{what}");
        }
        assert!(refused(encode_meta(&[told(META_TAGS_MAX + 1)])));
        let named = |n: usize| (n.to_string(), ToldValue { value: None, at: Hlc(1) });
        let fields = (0..=META_FIELDS_MAX).map(named).collect();
        assert!(refused(encode_meta(&[Told { fields, ..told(0) }])));
    }

    #[test]
    fn a_frame_of_a_million_empty_elements_is_refused_before_they_are_decoded() {
        let flood = Bytes::from([0x0a, 0].repeat(512 * 1024));
        assert!(decode_plain_ack(flood.clone()).is_err());
        assert!(SetPage::decode(flood.clone(), None).is_err());
        assert!(decode_meta(flood).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_are_read_or_refused_and_never_panic(
            payload in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let payload = Bytes::from(payload);
            let _ = decode_plain_ack(payload.clone());
            let _ = SetPage::decode(payload.clone(), None);
            let _ = decode_meta(payload);
        }
    }
}
