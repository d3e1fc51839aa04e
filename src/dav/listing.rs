//! A directory of a folder for the page: the same entries as WebDAV shows.

use super::index::{ENTRIES_PER_PAGE, EntryKind, FileFacts};
use super::share::Share;
use crate::core::folder::path::FolderPath;
use crate::core::ids::{FolderId, Hash};
use crate::http::problem::{Problem, bad_request, problem};

/// A page of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Its entries, by name.
    pub entries: Vec<ListedFile>,
    /// The name after which the next page begins.
    pub next: Option<String>,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Its name, in the text form of paths.
    pub name: String,
    /// Its path in the folder, in text form.
    pub path: String,
    /// What is known of a file; `None`: a directory.
    pub file: Option<FileView>,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileView {
    /// The asset with its content.
    pub hash: Hash,
    /// Its size.
    pub size_bytes: u64,
    /// When it was last modified, ms since the Unix epoch.
    pub modified_ms: i64,
    /// Its content is on this device.
    pub is_here: bool,
}

/// Reads a page.
pub(super) async fn page(
    share: &Share,
    folder: FolderId,
    path: &str,
    after: &str,
) -> Result<Listing, Problem> {
    let bytes = |text: &str| match text {
        "" => Ok(Vec::new()),
        text => FolderPath::from_text(text).map(|path| path.as_bytes().to_vec()),
    };
    let wrong = |error| bad_request(format!("expected a path within the folder: {error}"));
    let (path, after) = (bytes(path).map_err(wrong)?, bytes(after).map_err(wrong)?);
    let failed = |error: anyhow::Error| {
        problem(axum::http::StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
    };
    let found = share.index.entries(folder, path.clone(), after).await.map_err(failed)?;
    let is_full = found.len() == ENTRIES_PER_PAGE;
    let mut entries = Vec::with_capacity(found.len());
    for entry in found {
        let whole = match path.is_empty() {
            true => entry.name.clone(),
            false => [&path, b"/".as_slice(), &entry.name].concat(),
        };
        let (Ok(name), Ok(path)) =
            (FolderPath::from_bytes(&entry.name), FolderPath::from_bytes(&whole))
        else {
            continue;
        };
        let file = match entry.kind {
            EntryKind::Directory => None,
            EntryKind::File(FileFacts { hash, size_bytes, modified_ms, .. }) => {
                let is_here = share.store.lookup(hash).await?.is_some_and(|asset| asset.is_held());
                Some(FileView { hash, size_bytes, modified_ms, is_here })
            }
        };
        entries.push(ListedFile { name: name.to_text(), path: path.to_text(), file });
    }
    let next = entries.last().filter(|_| is_full).map(|last| last.name.clone());
    Ok(Listing { entries, next })
}
