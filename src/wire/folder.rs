//! Versions of paths and events of a folder's history as bytes. See `proto/folders.proto`.

use bytes::Bytes;
use prost::Message as _;

use crate::core::folder::path::{FolderPath, PATH_BYTES_MAX};
use crate::core::folder::version::{Content, ShortId, VECTOR_DEVICES_MAX, Vector, Version};
use crate::core::ids::{Hash, NodeId};
use crate::core::limits::{
    ASSET_BYTES_MAX, DEVICE_NAME_BYTES_MAX, EVENT_DATA_BYTES_MAX, VALUE_BYTES_MAX,
};

use super::proto::folders as proto;
use super::{Repeated, WireError, bounded, parse_counted};

/// The longest content of a later version of this program: with the longest path and vector it fits
/// a field, so that the version can always be written again.
const LATER_BYTES_MAX: usize = 8 * 1024;

/// An event of a folder's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEvent {
    /// The version before the change.
    pub before: Version,
    /// When the change was made and by which device, where its author did not log it.
    pub change: Option<(u64, NodeId)>,
    /// The change put the path back to an earlier version because a user asked for that.
    pub is_undo: bool,
}

/// Encodes a version: the value of its field.
pub fn version_to_bytes(version: &Version) -> Vec<u8> {
    to_wire(version).encode_to_vec()
}

/// Decodes a version.
///
/// # Errors
/// [`WireError`]: the bytes are no version.
pub fn version_from_bytes(bytes: &[u8]) -> Result<Version, WireError> {
    bounded("a version in bytes", bytes.len() as u64, VALUE_BYTES_MAX as u64)?;
    const VECTOR: [Repeated; 1] = [Repeated { path: &[2], max: VECTOR_DEVICES_MAX }];
    from_wire(parse_counted("Version", Bytes::copy_from_slice(bytes), &VECTOR)?)
}

/// Encodes an event: its data.
pub fn history_to_bytes(event: &HistoryEvent) -> Vec<u8> {
    let (changed_ms, changed_by) = match &event.change {
        Some((ms, device)) => (*ms, Bytes::copy_from_slice(&device.0)),
        None => (0, Bytes::new()),
    };
    let before = Some(to_wire(&event.before));
    proto::HistoryEvent { before, changed_ms, changed_by, undo: event.is_undo }.encode_to_vec()
}

/// Decodes an event.
///
/// # Errors
/// [`WireError`]: the bytes are no event of a folder's history.
pub fn history_from_bytes(bytes: &[u8]) -> Result<HistoryEvent, WireError> {
    bounded("an event in bytes", bytes.len() as u64, EVENT_DATA_BYTES_MAX as u64)?;
    const VECTOR: [Repeated; 1] = [Repeated { path: &[1, 2], max: VECTOR_DEVICES_MAX }];
    let wire: proto::HistoryEvent =
        parse_counted("HistoryEvent", Bytes::copy_from_slice(bytes), &VECTOR)?;
    let before = wire.before.ok_or_else(|| malformed("HistoryEvent.before", "none"))?;
    let change = match (wire.changed_ms, wire.changed_by.as_ref()) {
        (0, []) => None,
        (ms, id) => {
            let device = NodeId::from_slice(id);
            Some((ms, device.ok_or_else(|| malformed("HistoryEvent.changed_by", "not 32 bytes"))?))
        }
    };
    Ok(HistoryEvent { before: from_wire(before)?, change, is_undo: wire.undo })
}

fn to_wire(version: &Version) -> proto::Version {
    let entry = |(device, time): (&ShortId, &u64)| proto::Entry { device: device.0, time: *time };
    proto::Version {
        path: Bytes::copy_from_slice(version.path.as_bytes()),
        vector: version.vector.0.iter().map(entry).collect(),
        content: content_to_bytes(&version.content).into(),
        device_name: version.device_name.clone(),
    }
}

fn from_wire(wire: proto::Version) -> Result<Version, WireError> {
    let path = FolderPath::from_bytes(&wire.path)
        .map_err(|error| malformed("Version.path", &error.to_string()))?;
    let name_bytes = wire.device_name.len() as u64;
    bounded("Version.device_name in bytes", name_bytes, DEVICE_NAME_BYTES_MAX as u64)?;
    let mut vector = Vector::default();
    for entry in wire.vector.iter().filter(|entry| entry.time > 0) {
        let time = vector.0.entry(ShortId(entry.device)).or_default();
        *time = (*time).max(entry.time);
    }
    let content = content_from_bytes(&wire.content)?;
    Ok(Version { path, content, vector, device_name: wire.device_name })
}

fn content_to_bytes(content: &Content) -> Vec<u8> {
    use proto::content::Kind;
    let kind = match content {
        Content::Absent => return Vec::new(),
        Content::Later(bytes) => return bytes.clone(),
        Content::Directory => Kind::Directory(proto::Directory {}),
        Content::Symlink { target } => {
            Kind::Symlink(proto::Symlink { target: Bytes::copy_from_slice(target) })
        }
        Content::File { hash, size_bytes, modified_ms, is_executable } => Kind::File(proto::File {
            hash: Bytes::copy_from_slice(&hash.0),
            size_bytes: *size_bytes,
            modified_ms: *modified_ms,
            executable: *is_executable,
        }),
    };
    proto::Content { kind: Some(kind) }.encode_to_vec()
}

fn content_from_bytes(bytes: &Bytes) -> Result<Content, WireError> {
    use proto::content::Kind;
    if bytes.is_empty() {
        return Ok(Content::Absent);
    }
    let wire: proto::Content = parse_counted("Content", bytes.clone(), &[])?;
    Ok(match wire.kind {
        None => {
            bounded("Version.content in bytes", bytes.len() as u64, LATER_BYTES_MAX as u64)?;
            Content::Later(bytes.to_vec())
        }
        Some(Kind::Directory(_)) => Content::Directory,
        Some(Kind::Symlink(proto::Symlink { target })) => {
            bounded("Symlink.target in bytes", target.len() as u64, PATH_BYTES_MAX as u64)?;
            if target.is_empty() || target.contains(&0) {
                return Err(malformed("Symlink.target", "empty, or with a zero byte"));
            }
            Content::Symlink { target: target.to_vec() }
        }
        Some(Kind::File(file)) => {
            bounded("File.size_bytes", file.size_bytes, ASSET_BYTES_MAX)?;
            let hash = Hash::from_slice(&file.hash);
            Content::File {
                hash: hash.ok_or_else(|| malformed("File.hash", "not 32 bytes"))?,
                size_bytes: file.size_bytes,
                modified_ms: file.modified_ms,
                is_executable: file.executable,
            }
        }
    })
}

fn malformed(what: &'static str, detail: &str) -> WireError {
    WireError::Malformed { what, detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn version(content: Content) -> Version {
        Version {
            path: FolderPath::from_bytes(b"a/\xff b").unwrap(),
            content,
            vector: Vector([(ShortId(1), 5), (ShortId(u64::MAX), u64::MAX)].into()),
            device_name: "desk".into(),
        }
    }

    fn file() -> Content {
        Content::File {
            hash: Hash([7; 32]),
            size_bytes: 12,
            modified_ms: i64::MIN,
            is_executable: true,
        }
    }

    #[test]
    fn versions_and_events_come_back_from_their_bytes() {
        for content in [
            file(),
            Content::Absent,
            Content::Directory,
            Content::Symlink { target: b"../x".to_vec() },
        ] {
            let version = version(content);
            assert_eq!(version_from_bytes(&version_to_bytes(&version)).unwrap(), version);
            for change in [None, Some((7, NodeId([3; 32])))] {
                for is_undo in [false, true] {
                    let event = HistoryEvent { before: version.clone(), change, is_undo };
                    assert_eq!(history_from_bytes(&history_to_bytes(&event)).unwrap(), event);
                }
            }
        }
    }

    #[test]
    fn a_content_of_a_later_version_is_passed_on_as_it_is() {
        // Field 9, two bytes.
        let later = version(Content::Later(vec![0x4a, 2, 1, 2]));
        let bytes = version_to_bytes(&later);
        assert_eq!(version_from_bytes(&bytes).unwrap(), later);
        assert_eq!(version_to_bytes(&version_from_bytes(&bytes).unwrap()), bytes);
    }

    #[test]
    fn what_is_no_version_is_refused() {
        let with = |edit: fn(&mut proto::Version)| {
            let mut wire = to_wire(&version(file()));
            edit(&mut wire);
            version_from_bytes(&wire.encode_to_vec())
        };
        assert!(with(|_| {}).is_ok());
        let bad: [fn(&mut proto::Version); 9] = [
            |wire| wire.path = Bytes::new(),
            |wire| wire.path = Bytes::from_static(b"../etc/passwd"),
            |wire| wire.path = Bytes::from_static(b"/etc/passwd"),
            |wire| wire.path = vec![b'a'; 5000].into(),
            |wire| wire.content = Bytes::from_static(b"\xff\xff"),
            // A file whose hash has two bytes; a link with a zero byte in its target.
            |wire| wire.content = Bytes::from_static(b"\x0a\x04\x0a\x02ab"),
            |wire| wire.content = Bytes::from_static(b"\x12\x04\x0a\x02a\0"),
            |wire| wire.device_name = "n".repeat(DEVICE_NAME_BYTES_MAX + 1),
            |wire| {
                let entry = |n| proto::Entry { device: n, time: 1 };
                wire.vector = (0..=VECTOR_DEVICES_MAX as u64).map(entry).collect();
            },
        ];
        for (case, edit) in bad.into_iter().enumerate() {
            assert!(with(edit).is_err(), "case {case}");
        }
        for bytes in [b"".as_slice(), b"\xff", b"text", &[0; 64]] {
            assert!(version_from_bytes(bytes).is_err(), "{bytes:?}");
            assert!(history_from_bytes(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic() {
        let good = version_to_bytes(&version(file()));
        for at in 0..good.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = byte;
                let _ = version_from_bytes(&bytes);
                let _ = version_from_bytes(&good[..at]);
            }
        }
    }
}
