//! Converts the messages of `proto/store.proto` to and from the trait's types, for server and
//! client. Input is bounded and made canonical here, once. Errors are sentences, which the server
//! sends with 400 and the client reports as a broken contract.

use prost::Message as _;

use super::{Asset, Entry, Metadata, StoreInfo};
use crate::core::attributes::{Attribute, Attributes};
use crate::core::ids::{Digest, Hash, HashAlgorithm, StoreId};
use crate::core::limits::METADATA_BYTES_MAX;
use crate::wire::proto::store as proto;

/// The media type of the messages.
pub(crate) const PROTOBUF_TYPE: &str = "application/x-protobuf";

/// The API version of this code.
pub(crate) const API_VERSION: u32 = 1;

/// The most hashes of one pull and bundles of one batch (stated in the proto file).
pub(crate) const MESSAGE_ENTRIES_MAX: usize = 1024;

/// The longest encoded push, pull answer or batch that this program sends or accepts (see the proto
/// file).
pub(crate) const MESSAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The most elements of any list in a message; each list may have a smaller bound of its own.
pub(crate) const MESSAGE_REPEATED_MAX: usize = TAGS_MAX;

/// The header with the metadata of a streamed upload: `Metadata` in unpadded base64url.
pub(crate) const METADATA_HEADER: &str = "asset-metadata";

/// The header of an upload that is to replace a damaged content.
pub(crate) const REPAIR_HEADER: &str = "asset-repair";

/// The header with the number of bytes kept of an unfinished upload.
pub(crate) const UPLOAD_OFFSET_HEADER: &str = "upload-offset";

/// The most tags of one asset; each costs a row and some bytes.
pub(crate) const TAGS_MAX: usize = 4096;

/// Checks the bounds of metadata and makes it canonical: tags sorted, without duplicates.
pub(crate) fn canonical(mut metadata: Metadata) -> Result<Metadata, String> {
    metadata.tags.sort_unstable();
    metadata.tags.dedup();
    at_most("the number of tags", metadata.tags.len(), TAGS_MAX)?;
    let tags: usize = metadata.tags.iter().map(String::len).sum();
    at_most(
        "the length of description, attributes and tags in bytes",
        metadata.description.len() + metadata.attributes.text_bytes() + tags,
        METADATA_BYTES_MAX,
    )?;
    Ok(metadata)
}

/// Returns an error if a value is above its limit.
pub(crate) fn at_most(what: &str, got: usize, limit: usize) -> Result<(), String> {
    if got > limit {
        return Err(format!("{what} is {got}, at most {limit} is allowed"));
    }
    Ok(())
}

/// A hash from its raw bytes.
pub(crate) fn hash(bytes: &[u8]) -> Result<Hash, String> {
    Hash::from_slice(bytes)
        .ok_or_else(|| format!("a hash has {} bytes, got {}", Hash::LEN, bytes.len()))
}

/// Metadata from its message; a missing message is empty metadata.
pub(crate) fn metadata(message: Option<proto::Metadata>) -> Result<Metadata, String> {
    let message = message.unwrap_or_default();
    let attributes = attributes(proto::Attributes {
        file_name: message.file_name,
        media_type: message.media_type,
        path: message.path,
        modified_ms: message.modified_ms,
        captured_ms: message.captured_ms,
        application: message.application,
        user: message.user,
    });
    canonical(Metadata {
        description: message.description,
        tags: message.tags,
        trashed: message.is_trashed,
        version: message.version,
        attributes,
    })
}

/// Attributes from their message.
pub(crate) fn attributes(message: proto::Attributes) -> Attributes {
    Attributes::named(&message.file_name)
        .with_text(Attribute::MediaType, &message.media_type)
        .with_text(Attribute::Path, &message.path)
        .with_time(Attribute::ModifiedMs, message.modified_ms)
        .with_time(Attribute::CapturedMs, message.captured_ms)
        .with_text(Attribute::Application, &message.application)
        .with_text(Attribute::User, &message.user)
}

/// The message for attributes.
pub(crate) fn attributes_message(attributes: &Attributes) -> proto::Attributes {
    let text = |attribute| attributes.text(attribute).to_owned();
    proto::Attributes {
        file_name: text(Attribute::Name),
        media_type: text(Attribute::MediaType),
        path: text(Attribute::Path),
        modified_ms: attributes.time_ms(Attribute::ModifiedMs),
        captured_ms: attributes.time_ms(Attribute::CapturedMs),
        application: text(Attribute::Application),
        user: text(Attribute::User),
    }
}

/// The message for metadata.
pub(crate) fn metadata_message(metadata: &Metadata) -> proto::Metadata {
    let attributes = attributes_message(&metadata.attributes);
    proto::Metadata {
        description: metadata.description.clone(),
        tags: metadata.tags.clone(),
        is_trashed: metadata.trashed,
        version: metadata.version,
        file_name: attributes.file_name,
        media_type: attributes.media_type,
        path: attributes.path,
        modified_ms: attributes.modified_ms,
        captured_ms: attributes.captured_ms,
        application: attributes.application,
        user: attributes.user,
    }
}

/// Metadata as the value of [`METADATA_HEADER`].
pub(crate) fn metadata_header(metadata: &Metadata) -> String {
    data_encoding::BASE64URL_NOPAD.encode(&metadata_message(metadata).encode_to_vec())
}

/// Metadata from the value of [`METADATA_HEADER`].
pub(crate) fn metadata_from_header(value: &[u8]) -> Result<Metadata, String> {
    let wrong = || format!("{METADATA_HEADER} must be a Metadata message in base64url");
    let bytes = data_encoding::BASE64URL_NOPAD.decode(value).map_err(|_| wrong())?;
    metadata(Some(proto::Metadata::decode(bytes.as_slice()).map_err(|_| wrong())?))
}

/// A feed entry from its message.
pub(crate) fn entry(message: &proto::Digest) -> Result<Entry, String> {
    Ok(Entry {
        digest: Digest { hash: hash(&message.hash)?, size_bytes: message.size_bytes },
        timestamp_ms: message.timestamp_ms,
        cursor: message.cursor,
    })
}

/// The message for a feed entry.
pub(crate) fn entry_message(entry: &Entry) -> proto::Digest {
    proto::Digest {
        hash: entry.digest.hash.as_bytes().to_vec().into(),
        size_bytes: entry.digest.size_bytes,
        timestamp_ms: entry.timestamp_ms,
        cursor: entry.cursor,
    }
}

/// The asset in a bundle, without its content.
pub(crate) fn asset(bundle: &proto::Bundle) -> Result<Asset, String> {
    let digest = bundle.digest.as_ref().ok_or("a bundle has no digest")?;
    let metadata = metadata(bundle.metadata.clone())?;
    Ok(Asset { entry: entry(digest)?, metadata, is_damaged: false, is_evicted: false })
}

/// A store's description from its message, with its features.
pub(crate) fn info(message: proto::StoreInfo) -> Result<(StoreInfo, Vec<String>), String> {
    if message.api_version != API_VERSION {
        return Err(format!(
            "the store speaks api version {}, this program speaks {API_VERSION}",
            message.api_version
        ));
    }
    let hash_algorithm = match message.hash_algorithm() {
        proto::HashAlgorithm::Blake3 => HashAlgorithm::Blake3,
        proto::HashAlgorithm::Sha256 => HashAlgorithm::Sha256,
        proto::HashAlgorithm::Unspecified => {
            return Err(format!("hash algorithm {} is not known", message.hash_algorithm));
        }
    };
    let store_id = StoreId::from_slice(&message.store_id).ok_or_else(|| {
        format!("a store id has {} bytes, got {}", StoreId::LEN, message.store_id.len())
    })?;
    let info = StoreInfo {
        store_id,
        hash_algorithm,
        newest_cursor: message.newest_cursor,
        asset_count: message.asset_count,
        asset_bytes: message.asset_bytes,
        largest_asset_bytes: Some(message.largest_asset_bytes).filter(|bytes| *bytes > 0),
    };
    Ok((info, message.features))
}

/// The message for a store's description.
pub(crate) fn info_message(info: &StoreInfo, features: Vec<String>) -> proto::StoreInfo {
    let hash_algorithm = match info.hash_algorithm {
        HashAlgorithm::Blake3 => proto::HashAlgorithm::Blake3,
        HashAlgorithm::Sha256 => proto::HashAlgorithm::Sha256,
    };
    proto::StoreInfo {
        store_id: info.store_id.as_bytes().to_vec().into(),
        api_version: API_VERSION,
        hash_algorithm: hash_algorithm.into(),
        newest_cursor: info.newest_cursor,
        asset_count: info.asset_count,
        asset_bytes: info.asset_bytes,
        largest_asset_bytes: info.largest_asset_bytes.unwrap_or(0),
        features,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_sorted_and_unique() {
        let tags = ["b", "a", "b"].map(str::to_owned).to_vec();
        let metadata = Metadata { tags, ..Metadata::default() };
        assert_eq!(canonical(metadata).unwrap().tags, ["a", "b"]);
    }

    #[test]
    fn metadata_is_bounded_on_both_sides_of_each_limit() {
        for (over, fits) in [(0, true), (1, false)] {
            let long = Metadata {
                description: "x".repeat(METADATA_BYTES_MAX - 2 + over),
                attributes: Attributes::named("n"),
                tags: vec!["t".into(), "t".into()],
                ..Metadata::default()
            };
            assert_eq!(canonical(long).is_ok(), fits);
            let many = Metadata {
                tags: (0..TAGS_MAX + over).map(|tag| tag.to_string()).collect(),
                ..Metadata::default()
            };
            assert_eq!(canonical(many).is_ok(), fits);
        }
    }

    #[test]
    fn metadata_travels_in_a_header() {
        let metadata = Metadata {
            description: "grüße\r\n".into(),
            tags: vec!["a".into()],
            trashed: true,
            version: 7,
            attributes: Attributes::named("ü.txt")
                .with_text(Attribute::MediaType, "text/plain")
                .with_text(Attribute::Path, "a/b")
                .with_time(Attribute::ModifiedMs, Some(-1))
                .with_time(Attribute::CapturedMs, Some(0))
                .with_text(Attribute::Application, "camera")
                .with_text(Attribute::User, "me"),
        };
        let header = metadata_header(&metadata);
        assert_eq!(metadata_from_header(header.as_bytes()), Ok(metadata));
        assert!(metadata_from_header(b"=?=").is_err());
    }
}
