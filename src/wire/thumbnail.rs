//! The stream of a thumbnail: a hash, and the answer.

use bytes::Bytes;

use crate::core::ids::Hash;
use crate::core::limits::THUMBNAIL_BYTES_MAX;
use crate::core::thumbnail::Answer;
use crate::wire::proto::peer::{self, thumbnail::Outcome};
use crate::wire::{WireError, bounded, parse};

/// Encodes a request.
pub fn encode_request(hash: &Hash) -> peer::ThumbnailRequest {
    peer::ThumbnailRequest { hash: Bytes::copy_from_slice(hash.as_bytes()) }
}

/// Reads a request.
///
/// # Errors
/// [`WireError`] if it names no asset.
pub fn decode_request(payload: Bytes) -> Result<Hash, WireError> {
    let message: peer::ThumbnailRequest = parse("ThumbnailRequest", payload, 0)?;
    Hash::from_slice(&message.hash).ok_or_else(|| WireError::Malformed {
        what: "ThumbnailRequest.hash",
        detail: "not 32 bytes".to_owned(),
    })
}

/// Encodes an answer.
pub fn encode_answer(answer: &Answer) -> peer::Thumbnail {
    let (outcome, jpeg) = match answer {
        Answer::Made(jpeg) => (Outcome::Made, jpeg.clone()),
        Answer::Impossible => (Outcome::Impossible, Bytes::new()),
        Answer::NotHeld => (Outcome::NotHeld, Bytes::new()),
        Answer::Busy => (Outcome::Busy, Bytes::new()),
    };
    peer::Thumbnail { outcome: outcome.into(), jpeg }
}

/// Reads an answer. Whether it holds a picture, it does not tell.
///
/// # Errors
/// [`WireError`] if it is too long.
pub fn decode_answer(payload: Bytes) -> Result<Answer, WireError> {
    let message: peer::Thumbnail = parse("Thumbnail", payload, 0)?;
    bounded("Thumbnail.jpeg", message.jpeg.len() as u64, THUMBNAIL_BYTES_MAX)?;
    Ok(match message.outcome() {
        Outcome::Made => Answer::Made(message.jpeg),
        Outcome::Impossible => Answer::Impossible,
        Outcome::Busy => Answer::Busy,
        // A later version may have other reasons.
        Outcome::NotHeld | Outcome::Unspecified => Answer::NotHeld,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use prost::Message as _;

    #[test]
    fn requests_and_answers_come_back_as_they_were() {
        let hash = Hash([7; 32]);
        let request = encode_request(&hash).encode_to_vec();
        assert_eq!(decode_request(request.into()).unwrap(), hash);
        let longest = Bytes::from(vec![1; THUMBNAIL_BYTES_MAX as usize]);
        for answer in [Answer::Made(longest), Answer::Impossible, Answer::NotHeld, Answer::Busy] {
            let payload = encode_answer(&answer).encode_to_vec();
            assert_eq!(decode_answer(payload.into()).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        assert!(decode_request(Bytes::new()).is_err());
        let long = Answer::Made(vec![1; THUMBNAIL_BYTES_MAX as usize + 1].into());
        assert!(decode_answer(encode_answer(&long).encode_to_vec().into()).is_err());
    }
}
