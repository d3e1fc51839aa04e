//! The messages that only the plain protocol, `can-sync/1`, uses: pages of a whole set, and
//! acknowledgements that name their assets. Its contents are in the frames of [`super::batch`],
//! under [`Naming::Plain`](super::batch::Naming::Plain).

use bytes::Bytes;

use super::batch::{Verdict, decode_verdict, hash, malformed};
use crate::core::ids::Hash;
use crate::core::limits::{HASHES_PER_FRAME_MAX, OFFER_ENTRIES_MAX};
use crate::wire::proto::peer;
use crate::wire::{WireError, bounded, parse};

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

    #[test]
    fn a_frame_of_a_million_empty_elements_is_refused_before_they_are_decoded() {
        let flood = Bytes::from([0x0a, 0].repeat(512 * 1024));
        assert!(decode_plain_ack(flood.clone()).is_err());
        assert!(SetPage::decode(flood, None).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_are_read_or_refused_and_never_panic(
            payload in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let payload = Bytes::from(payload);
            let _ = decode_plain_ack(payload.clone());
            let _ = SetPage::decode(payload, None);
        }
    }
}
