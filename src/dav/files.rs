//! The group's folders and assets as a file system for the library that speaks WebDAV.
//!
//! Reading a file is none of its work: [`super::contents`] serves contents, checked against their
//! hashes. Writing is done in folders alone, see [`super::share`].

use std::pin::Pin;

use axum::http::StatusCode;
use dav_server::davpath::DavPath;
use dav_server::fs::{
    DavDirEntry, DavFile, DavMetaData, DavProp, FsError, FsFuture, FsResult, FsStream,
    GuardedFileSystem, OpenOptions, ReadDirMeta,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::entry::{Facts, Listed};
use super::index::{ENTRIES_PER_PAGE, EntryKind, FileFacts};
use super::place::{BY_DATE, BY_TAG, FOLDERS, Place};
use super::share::{At, Share, content, internal};
use super::shelves::{Shelf, Shelved};
use super::upload::Upload;
use crate::core::folder::version::Content;
use crate::core::ids::FolderId;

/// What a request says besides its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Told {
    /// When the uploaded file was last modified, ms since the Unix epoch.
    pub(super) modified_ms: Option<i64>,
}

/// The file system. Clones share it.
#[derive(Clone)]
pub(super) struct Files(pub(super) Share);

impl Files {
    /// Where in a folder a path is that may be written.
    async fn writable(&self, path: &DavPath) -> FsResult<At> {
        let place = Place::of(path.as_bytes());
        let (name, path) = place.writable().ok_or(FsError::Forbidden)?;
        let folder = self.folder(name).await?;
        Ok(At { folder, path: path.clone() })
    }

    /// The properties that clients put on what is at a path.
    async fn properties(&self, path: &DavPath) -> FsResult<Vec<DavProp>> {
        let At { folder, path } = self.writable(path).await?;
        self.0.properties.of(folder, &path).await.map_err(internal)
    }

    async fn folder(&self, name: &str) -> FsResult<FolderId> {
        self.0.folder(name).await.map_err(internal)?.ok_or(FsError::NotFound)
    }

    /// What is at a place.
    pub(super) async fn look(&self, place: &Place) -> FsResult<EntryKind> {
        let index = &self.0.index;
        let is_there = match place {
            Place::Top | Place::Folders | Place::Dates | Place::Tags => true,
            Place::Nowhere => false,
            Place::Folder(name) => self.0.folder(name).await.map_err(internal)?.is_some(),
            Place::Inside(name, path) => {
                let folder = self.folder(name).await?;
                let found = index.entry(folder, path.clone()).await.map_err(internal)?;
                return found.ok_or(FsError::NotFound);
            }
            Place::Year(year) => {
                !index.dates(Some(year.clone())).await.map_err(internal)?.is_empty()
            }
            Place::Shelf(shelf) => index.is_shelf(shelf.clone()).await.map_err(internal)?,
            Place::Asset(shelf, name) => {
                let found = index.find_shelved(shelf.clone(), name.clone()).await;
                let found = found.map_err(internal)?.ok_or(FsError::NotFound)?;
                return Ok(self.held(found).await?.ok_or(FsError::NotFound)?.kind);
            }
        };
        is_there.then_some(EntryKind::Directory).ok_or(FsError::NotFound)
    }

    /// An asset as an entry; `None` when the store does not hold it.
    async fn held(&self, asset: Shelved) -> FsResult<Option<Listed>> {
        let found = self.0.store.lookup(asset.hash).await;
        let found = found.map_err(|error| internal(error.into()))?;
        Ok(found.filter(crate::store::Asset::is_held).map(|found| Listed {
            name: asset.name.into_bytes(),
            kind: EntryKind::File(FileFacts {
                hash: asset.hash,
                size_bytes: found.entry.digest.size_bytes,
                modified_ms: asset.modified_ms.unwrap_or(found.entry.timestamp_ms),
                is_executable: false,
            }),
        }))
    }

    async fn list(&self, place: Place) -> FsResult<Listing> {
        let directories = |names: Vec<String>| -> Listing {
            let listed = names
                .into_iter()
                .map(|name| Ok(Listed { name: name.into_bytes(), kind: EntryKind::Directory }));
            Box::pin(stream::iter(listed))
        };
        Ok(match place {
            Place::Top => directories([BY_DATE, BY_TAG, FOLDERS].map(str::to_owned).into()),
            Place::Folders => {
                let folders = self.0.folders().await.map_err(internal)?;
                directories(folders.into_iter().map(|(name, _)| name).collect())
            }
            Place::Folder(name) => self.entries(self.folder(&name).await?, Vec::new()),
            Place::Inside(name, path) => {
                self.entries(self.folder(&name).await?, path.as_bytes().to_vec())
            }
            Place::Dates => directories(self.0.index.dates(None).await.map_err(internal)?),
            Place::Year(year) => {
                directories(self.0.index.dates(Some(year)).await.map_err(internal)?)
            }
            Place::Tags => self.tags(),
            Place::Shelf(shelf) => self.shelf(shelf),
            Place::Asset(..) | Place::Nowhere => return Err(FsError::NotFound),
        })
    }

    /// The entries of a directory, page by page: a client that reads slowly costs one page.
    fn entries(&self, folder: FolderId, path: Vec<u8>) -> Listing {
        let index = self.0.index.clone();
        let pages = stream::try_unfold(Some(Vec::new()), move |after| {
            let (index, path) = (index.clone(), path.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let page = index.entries(folder, path, after).await.map_err(internal)?;
                let next = page.last().map(|last| last.name.clone());
                let next = next.filter(|_| page.len() == ENTRIES_PER_PAGE);
                let page =
                    page.into_iter().map(|entry| Ok(Listed { name: entry.name, kind: entry.kind }));
                Ok::<_, FsError>(Some((stream::iter(page), next)))
            }
        });
        Box::pin(pages.try_flatten())
    }

    fn tags(&self) -> Listing {
        let index = self.0.index.clone();
        let pages = stream::try_unfold(Some(String::new()), move |after| {
            let index = index.clone();
            async move {
                let Some(after) = after else { return Ok(None) };
                let page = index.tags(after).await.map_err(internal)?;
                let next = page.last().cloned().filter(|_| page.len() == ENTRIES_PER_PAGE);
                let page = page
                    .into_iter()
                    .map(|tag| Ok(Listed { name: tag.into_bytes(), kind: EntryKind::Directory }));
                Ok::<_, FsError>(Some((stream::iter(page), next)))
            }
        });
        Box::pin(pages.try_flatten())
    }

    fn shelf(&self, shelf: Shelf) -> Listing {
        let files = self.clone();
        let pages = stream::try_unfold(Some(None), move |after| {
            let (files, shelf) = (files.clone(), shelf.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let page = files.0.index.shelved(shelf, after).await.map_err(internal)?;
                let (assets, next) = page;
                let mut listed = Vec::with_capacity(assets.len());
                for asset in assets {
                    listed.extend(files.held(asset).await?.map(Ok));
                }
                Ok::<_, FsError>(Some((stream::iter(listed), next.map(Some))))
            }
        });
        Box::pin(pages.try_flatten())
    }
}

type Listing = Pin<Box<dyn futures_util::Stream<Item = FsResult<Listed>> + Send>>;

impl GuardedFileSystem<Told> for Files {
    fn open<'a>(
        &'a self,
        path: &'a DavPath,
        options: OpenOptions,
        told: &'a Told,
    ) -> FsFuture<'a, Box<dyn DavFile>> {
        Box::pin(async move {
            if !options.write || options.append {
                return Err(FsError::NotImplemented);
            }
            let at = self.writable(path).await?;
            let found = self.0.index.entry(at.folder, at.path.clone()).await.map_err(internal)?;
            match found {
                Some(EntryKind::Directory) => return Err(FsError::Forbidden),
                Some(_) if options.create_new => return Err(FsError::Exists),
                None if !options.create => return Err(FsError::NotFound),
                None if !self.0.has_parent(&at).await.map_err(internal)? => {
                    return Err(FsError::NotFound);
                }
                Some(EntryKind::File(_)) | None => {}
            }
            let upload = Upload::new(self.0.clone(), at, options.size, told.modified_ms);
            Ok(Box::new(upload.await?) as Box<dyn DavFile>)
        })
    }

    fn read_dir<'a>(
        &'a self,
        path: &'a DavPath,
        _meta: ReadDirMeta,
        _told: &'a Told,
    ) -> FsFuture<'a, FsStream<Box<dyn DavDirEntry>>> {
        Box::pin(async move {
            let listing = self.list(Place::of(path.as_bytes())).await?;
            let boxed =
                listing.map(|listed| listed.map(|one| Box::new(one) as Box<dyn DavDirEntry>));
            Ok(Box::pin(boxed) as FsStream<_>)
        })
    }

    fn metadata<'a>(
        &'a self,
        path: &'a DavPath,
        _told: &'a Told,
    ) -> FsFuture<'a, Box<dyn DavMetaData>> {
        Box::pin(async move {
            let kind = self.look(&Place::of(path.as_bytes())).await?;
            // `/a/` is no name of a file.
            if path.is_collection() && kind != EntryKind::Directory {
                return Err(FsError::NotFound);
            }
            Ok(Box::new(Facts(kind)) as Box<dyn DavMetaData>)
        })
    }

    fn create_dir<'a>(&'a self, path: &'a DavPath, _told: &'a Told) -> FsFuture<'a, ()> {
        Box::pin(async move {
            let at = self.writable(path).await?;
            if self.0.index.entry(at.folder, at.path.clone()).await.map_err(internal)?.is_some() {
                return Err(FsError::Exists);
            }
            if !self.0.has_parent(&at).await.map_err(internal)? {
                return Err(FsError::NotFound);
            }
            self.0.write(at.folder, vec![(at.path, Content::Directory)]).await
        })
    }

    fn remove_dir<'a>(&'a self, path: &'a DavPath, _told: &'a Told) -> FsFuture<'a, ()> {
        Box::pin(async move {
            let at = self.writable(path).await?;
            let inside = self.0.index.entries(at.folder, at.path.as_bytes().to_vec(), Vec::new());
            if !inside.await.map_err(internal)?.is_empty() {
                return Err(FsError::Exists);
            }
            self.0.remove(&at).await
        })
    }

    fn remove_file<'a>(&'a self, path: &'a DavPath, _told: &'a Told) -> FsFuture<'a, ()> {
        Box::pin(async move { self.0.remove(&self.writable(path).await?).await })
    }

    fn rename<'a>(
        &'a self,
        from: &'a DavPath,
        to: &'a DavPath,
        _told: &'a Told,
    ) -> FsFuture<'a, ()> {
        Box::pin(async move {
            let (from, to) = (self.writable(from).await?, self.writable(to).await?);
            self.0.rename(&from, &to).await
        })
    }

    fn copy<'a>(&'a self, from: &'a DavPath, to: &'a DavPath, _told: &'a Told) -> FsFuture<'a, ()> {
        Box::pin(async move {
            // The content is in the store already: a copy is one more path that names it. That of an
            // asset from by-date or by-tag puts it into a folder.
            let source = Place::of(from.as_bytes());
            let kind = self.look(&source).await?;
            let to = self.writable(to).await?;
            if !self.0.has_parent(&to).await.map_err(internal)? {
                return Err(FsError::NotFound);
            }
            self.0.write(to.folder, vec![(to.path.clone(), content(&kind))]).await?;
            let Ok(from) = self.writable(from).await else { return Ok(()) };
            let (from, to) = ((from.folder, &from.path), (to.folder, &to.path));
            self.0.properties.copy(from, to).await.map_err(internal)
        })
    }

    fn have_props<'a>(
        &'a self,
        path: &'a DavPath,
        _told: &'a Told,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async move { Place::of(path.as_bytes()).writable().is_some() })
    }

    fn patch_props<'a>(
        &'a self,
        path: &'a DavPath,
        patch: Vec<(bool, DavProp)>,
        _told: &'a Told,
    ) -> FsFuture<'a, Vec<(StatusCode, DavProp)>> {
        Box::pin(async move {
            let At { folder, path } = self.writable(path).await?;
            let is_done = self.0.properties.patch(folder, &path, &patch).await.map_err(internal)?;
            let status = if is_done { StatusCode::OK } else { StatusCode::INSUFFICIENT_STORAGE };
            let answers = patch.into_iter().map(|(_, property)| (status, named(property)));
            Ok(answers.collect())
        })
    }

    fn get_props<'a>(
        &'a self,
        path: &'a DavPath,
        do_content: bool,
        _told: &'a Told,
    ) -> FsFuture<'a, Vec<DavProp>> {
        Box::pin(async move {
            let all = self.properties(path).await?;
            Ok(match do_content {
                true => all,
                false => all.into_iter().map(named).collect(),
            })
        })
    }

    fn get_prop<'a>(
        &'a self,
        path: &'a DavPath,
        property: DavProp,
        _told: &'a Told,
    ) -> FsFuture<'a, Vec<u8>> {
        Box::pin(async move {
            let all = self.properties(path).await?;
            let name = (&property.namespace, &property.name);
            let found = all.into_iter().find(|one| (&one.namespace, &one.name) == name);
            found.and_then(|found| found.xml).ok_or(FsError::NotFound)
        })
    }

    fn get_quota<'a>(&'a self, _told: &'a Told) -> FsFuture<'a, (u64, Option<u64>)> {
        Box::pin(async move {
            let info = self.0.store.info().await.map_err(|error| internal(error.into()))?;
            let used_bytes = info.asset_bytes;
            let disk = rustix::fs::statvfs(self.0.handle.staging_dir());
            let free_bytes = disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)).ok();
            Ok((used_bytes, free_bytes.map(|free| used_bytes.saturating_add(free))))
        })
    }
}

/// A property without its value.
fn named(property: DavProp) -> DavProp {
    DavProp { xml: None, ..property }
}
