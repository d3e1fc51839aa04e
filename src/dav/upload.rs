//! A file that is being uploaded: in constant memory, and in the folder only when all of it has come.

use std::fmt;
use std::io::SeekFrom;

use bytes::{Buf, Bytes};
use dav_server::fs::{DavFile, DavMetaData, FsError, FsFuture};

use super::entry::Facts;
use super::index::{EntryKind, FileFacts};
use super::share::{At, Share, fs_error};
use crate::http::upload::Receiving;

/// The upload. One that is dropped before [`DavFile::flush`] leaves nothing.
pub(super) struct Upload {
    share: Share,
    at: At,
    /// The size that the client announced.
    expected_bytes: Option<u64>,
    modified_ms: Option<i64>,
    /// `None` once it is in the folder.
    receiving: Option<Receiving>,
    written: Option<FileFacts>,
}

impl Upload {
    /// Begins an upload to a path. Refuses one that would not fit.
    pub(super) async fn new(
        share: Share,
        at: At,
        expected_bytes: Option<u64>,
        modified_ms: Option<i64>,
    ) -> Result<Self, FsError> {
        let receiving =
            share.receive(expected_bytes).await.map_err(|problem| fs_error(&problem))?;
        let receiving = Some(receiving);
        Ok(Self { share, at, expected_bytes, modified_ms, receiving, written: None })
    }

    async fn take(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let receiving = self.receiving.as_mut().ok_or(FsError::GeneralFailure)?;
        let taken = receiving.take(bytes, self.share.store.as_ref()).await;
        taken.map_err(|problem| fs_error(&problem))
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("at", &self.at).finish_non_exhaustive()
    }
}

impl DavFile for Upload {
    fn metadata(&'_ mut self) -> FsFuture<'_, Box<dyn DavMetaData>> {
        let written = self.written.clone().map(|file| Facts(EntryKind::File(file)));
        let facts = written.map(|facts| Box::new(facts) as Box<dyn DavMetaData>);
        Box::pin(async move { facts.ok_or(FsError::NotImplemented) })
    }

    fn write_buf(&'_ mut self, mut buffer: Box<dyn Buf + Send>) -> FsFuture<'_, ()> {
        Box::pin(async move {
            let length = buffer.remaining();
            let bytes = buffer.copy_to_bytes(length);
            self.take(&bytes).await
        })
    }

    fn write_bytes(&'_ mut self, bytes: Bytes) -> FsFuture<'_, ()> {
        Box::pin(async move { self.take(&bytes).await })
    }

    fn read_bytes(&'_ mut self, _count: usize) -> FsFuture<'_, Bytes> {
        Box::pin(async { Err(FsError::NotImplemented) })
    }

    /// A part of a file cannot be written: a content is one whole with one hash.
    fn seek(&'_ mut self, _to: SeekFrom) -> FsFuture<'_, u64> {
        Box::pin(async { Err(FsError::NotImplemented) })
    }

    fn flush(&'_ mut self) -> FsFuture<'_, ()> {
        Box::pin(async move {
            let receiving = self.receiving.take().ok_or(FsError::GeneralFailure)?;
            // The library compares the sizes only after this.
            if self.expected_bytes.is_some_and(|bytes| bytes != receiving.size_bytes()) {
                return Err(FsError::GeneralFailure);
            }
            let put = self.share.put(&self.at, receiving, self.modified_ms);
            self.written = Some(put.await?);
            Ok(())
        })
    }
}
