//! Files and directories as the library that speaks WebDAV sees them.

use std::time::{Duration, SystemTime};

use dav_server::fs::{DavDirEntry, DavMetaData, FsError, FsFuture, FsResult};

use super::index::EntryKind;
use crate::core::ids::Hash;

/// What is known of a file or directory.
#[derive(Debug, Clone)]
pub(super) struct Facts(pub(super) EntryKind);

impl Facts {
    pub(super) fn time(ms: i64) -> SystemTime {
        let after = Duration::from_millis(ms.unsigned_abs());
        match ms < 0 {
            // Headers show no time before 1970.
            true => SystemTime::UNIX_EPOCH,
            false => SystemTime::UNIX_EPOCH + after,
        }
    }
}

impl DavMetaData for Facts {
    fn len(&self) -> u64 {
        match &self.0 {
            EntryKind::Directory => 0,
            EntryKind::File(file) => file.size_bytes,
        }
    }

    fn modified(&self) -> FsResult<SystemTime> {
        match &self.0 {
            EntryKind::Directory => Err(FsError::NotImplemented),
            EntryKind::File(file) => Ok(Self::time(file.modified_ms)),
        }
    }

    fn is_dir(&self) -> bool {
        self.0 == EntryKind::Directory
    }

    fn etag(&self) -> Option<String> {
        match &self.0 {
            EntryKind::Directory => None,
            EntryKind::File(file) => Some(short_etag(file.hash)),
        }
    }
}

/// The ETag of a content, without its quotes: half of its hash is enough to tell versions apart, and
/// some clients have little room for it.
pub(super) fn short_etag(hash: Hash) -> String {
    data_encoding::HEXLOWER.encode(&hash.0[..16])
}

/// An entry of a directory.
pub(super) struct Listed {
    pub(super) name: Vec<u8>,
    pub(super) kind: EntryKind,
}

impl DavDirEntry for Listed {
    fn name(&self) -> Vec<u8> {
        self.name.clone()
    }

    fn metadata(&'_ self) -> FsFuture<'_, Box<dyn DavMetaData>> {
        let facts = Facts(self.kind.clone());
        Box::pin(async move { Ok(Box::new(facts) as Box<dyn DavMetaData>) })
    }
}
