//! Gathering: receiving a large asset from one peer or from several at once.
//!
//! G1  An asset has one [`Gathering`] and one partial while it is under way. Each stream that
//!     brings a part of it holds a [`Source`]; [`Spans`] decides which part. A peer that claims
//!     another size gets a gathering of its own, so that its lie holds up nobody. With SHA-256
//!     every peer gets its own, because a part cannot be verified and one peer must not have to
//!     finish what another made up.
//! G2  A source that is dropped, for whatever reason, leaves what it has not brought to the others.
//! G3  A gathering is committed once, whichever source brings the last byte, and all its sources
//!     get the same outcome. Other partials of the asset are then removed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;

use super::context::{Context, blocking};
use super::outcome::{Outcome, with_causes};
use crate::core::ids::{Digest, HashAlgorithm};
use crate::core::spans::{Sharing, SourceId, Spans};
use crate::state::partials::{FinishError, Key, OpenError, Partial, PieceError};
use crate::store::{StoreError, Stored, VerifiedFile};
use crate::wire::batch::Piece;

/// The large assets under way. Clones share them.
#[derive(Clone, Default)]
pub struct Gatherings(Arc<Mutex<BTreeMap<Key, Weak<Gathering>>>>);

/// How a stream takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The receiver requests the missing ranges on this stream.
    Asked,
    /// The stream brings the whole asset from the first byte without a request.
    FromStart,
}

/// An asset under way. It ends when its last source is dropped; verified content stays on disk.
pub(super) struct Gathering {
    open: OnceCell<Open>,
}

struct Open {
    partial: Partial,
    spans: Mutex<Spans>,
    /// The time origin for [`Spans`].
    began: Instant,
    /// Notifies sources that there may be something else to do.
    changed: watch::Sender<()>,
    committed: OnceCell<Result<Outcome, Corrupt>>,
}

/// The content does not match the hash: the peer is at fault, not the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Corrupt;

/// A stream's part in a gathering.
pub(super) struct Source {
    gathering: Arc<Gathering>,
    id: SourceId,
    changes: watch::Receiver<()>,
}

/// Writes a source's pieces, on a thread that may block.
pub(super) struct PieceWriter {
    gathering: Arc<Gathering>,
    id: SourceId,
}

impl Gatherings {
    /// Joins the gathering of an asset. The first source begins it: it reads and hashes what is
    /// held already, and checks for space.
    ///
    /// # Errors
    /// The outcome of the asset on this stream.
    pub(super) async fn join(
        &self,
        ctx: &Context,
        digest: Digest,
        part: Part,
    ) -> Result<Source, Outcome> {
        let source = ctx.source.filter(|_| ctx.algorithm == HashAlgorithm::Sha256);
        let key = Key { digest, source };
        let gathering = self.find(key);
        if gathering.open.initialized() && part == Part::FromStart {
            return Err(Outcome::Interrupted);
        }
        let open = gathering.open.get_or_try_init(|| Open::begin(ctx, key, part)).await?;
        let id = open.spans().join().ok_or(Outcome::Interrupted)?;
        let changes = open.changed.subscribe();
        Ok(Source { gathering, id, changes })
    }

    fn find(&self, key: Key) -> Arc<Gathering> {
        let mut gatherings = self.0.lock();
        if let Some(gathering) = gatherings.get(&key).and_then(Weak::upgrade) {
            return gathering;
        }
        gatherings.retain(|_, gathering| gathering.strong_count() > 0);
        let gathering = Arc::new(Gathering { open: OnceCell::new() });
        gatherings.insert(key, Arc::downgrade(&gathering));
        gathering
    }
}

impl Open {
    async fn begin(ctx: &Context, key: Key, part: Part) -> Result<Self, Outcome> {
        let (size_bytes, algorithm) = (key.digest.size_bytes, ctx.algorithm);
        match ctx.store.info().await {
            Ok(info) if info.largest_asset_bytes.is_some_and(|largest| size_bytes > largest) => {
                return Err(Outcome::Refused("it is too large for this device's store".into()));
            }
            Ok(_) => {}
            Err(e) => return Err(refusal(&e)),
        }
        let partials = ctx.partials.clone();
        let opened = blocking(move || {
            let partial = partials.start(key, algorithm)?;
            if part == Part::FromStart {
                partial.empty()?;
            }
            Ok(partial)
        });
        let partial = match opened.await.map_err(|e| Outcome::Later(e.to_string()))? {
            Ok(partial) => partial,
            // An earlier transfer of it is still ending. Our store works.
            Err(OpenError::InUse(_) | OpenError::TooMany) => return Err(Outcome::Interrupted),
            Err(e) => return Err(Outcome::Later(with_causes(e))),
        };
        check_space(ctx, &partial).await.map_err(Outcome::Later)?;
        let partial = match part {
            Part::Asked => take_remains(ctx, partial).await.map_err(Outcome::Later)?,
            Part::FromStart => partial,
        };
        let missing = partial.missing();
        let sharing = match part {
            Part::Asked => Sharing::of(&key.digest, algorithm),
            Part::FromStart => Sharing::Alone,
        };
        Ok(Self {
            partial,
            spans: Mutex::new(Spans::new(missing, sharing)),
            began: Instant::now(),
            changed: watch::Sender::new(()),
            committed: OnceCell::new(),
        })
    }

    fn spans(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Copies the undamaged chunk groups of the store's damaged file to the partial, so that only what is
/// wrong there has to be sent.
async fn take_remains(ctx: &Context, partial: Partial) -> Result<Partial, String> {
    let digest = partial.digest();
    let remains = match ctx.store.remains(digest.hash).await {
        Ok(Some(remains)) if !partial.is_complete() => remains,
        Ok(_) => return Ok(partial),
        Err(error) => {
            tracing::info!(%error, hash = digest.hash.short(), "fetching all of a damaged asset");
            return Ok(partial);
        }
    };
    let taken = blocking(move || {
        let taken = partial.take_from(&remains.content, &remains.outboard);
        taken.map(|()| partial)
    });
    let partial = taken.await.map_err(|e| e.to_string())?.map_err(with_causes)?;
    let wrong_bytes = partial.missing().bytes();
    tracing::info!(
        hash = digest.hash.short(),
        wrong_bytes,
        "fetching the damaged parts of an asset"
    );
    Ok(partial)
}

/// Checks that there is space for the rest of the asset beside everything under way, in the folder
/// of partials and in the store.
async fn check_space(ctx: &Context, partial: &Partial) -> Result<(), String> {
    let needed_bytes = partial.space_needed_bytes();
    let partials = ctx.partials.clone();
    let checked = blocking(move || partials.check_space(needed_bytes)).await;
    checked.map_err(|e| e.to_string())?.map_err(with_causes)?;
    ctx.store.check_space(needed_bytes).await.map_err(|e| e.to_string())
}

impl Gathering {
    fn open(&self) -> &Open {
        self.open.get().expect("a source joins what is open")
    }

    /// Commits the whole asset to the store, or waits for another source that does.
    ///
    /// # Cancel safety
    /// Safe: another source commits it, if one is left.
    pub(super) async fn commit(self: Arc<Self>, ctx: &Context) -> Result<Outcome, Corrupt> {
        self.open().committed.get_or_init(|| adopt(ctx, self.clone())).await.clone()
    }
}

impl Source {
    /// The next span to request, beside those that are open.
    pub(super) fn next(&self) -> Option<Range<u64>> {
        let open = self.gathering.open();
        let mut spans = open.spans();
        let sources = spans.sources();
        let next = spans.next(open.now_ms(), self.id);
        if spans.sources() < sources {
            open.changed.send_replace(());
        }
        next
    }

    /// Whether this source may be needed again, now or later.
    pub(super) fn may_ask(&self) -> bool {
        self.gathering.open().spans().may_ask(self.id)
    }

    /// Whether other sources have taken over its part.
    pub(super) fn is_left_behind(&self) -> bool {
        !self.gathering.open().spans().is_source(self.id)
    }

    /// The gathering to commit if everything has arrived.
    pub(super) fn whole(&self) -> Option<Arc<Gathering>> {
        self.gathering.open().spans().is_whole().then(|| self.gathering.clone())
    }

    /// How many bytes this source will probably still bring.
    pub(super) fn share_bytes(&self) -> u64 {
        self.gathering.open().spans().share_bytes(self.id)
    }

    /// When an idle source should look for more to do if nothing changes.
    pub(super) fn look_at(&self) -> Option<Instant> {
        let open = self.gathering.open();
        let late_ms = open.spans().late_ms()?;
        Some(open.began + Duration::from_millis(late_ms))
    }

    /// Returns when there may be something else to do.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn changed(&mut self) {
        // The sender lives as long as the gathering.
        let _ = self.changes.changed().await;
    }

    pub(super) fn writer(&self) -> PieceWriter {
        PieceWriter { gathering: self.gathering.clone(), id: self.id }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let open = self.gathering.open();
        open.spans().leave(self.id);
        open.changed.send_replace(());
    }
}

impl PieceWriter {
    /// Verifies a piece and writes it as far as it is right.
    pub(super) fn write(&self, piece: &Piece) -> Result<(), PieceError> {
        let open = self.gathering.open();
        let (start, length_bytes) = (piece.offset_bytes, piece.length_bytes.into());
        let written = open.partial.write_piece(start, length_bytes, &piece.encoded);
        let end = match &written {
            Ok(()) => piece.end_bytes(),
            Err(PieceError::Corrupt { offset_bytes }) => *offset_bytes,
            Err(PieceError::Misplaced { .. } | PieceError::Io(_)) => return written,
        };
        let mut spans = open.spans();
        spans.arrived(open.now_ms(), self.id, start..end);
        if spans.is_whole() {
            open.changed.send_replace(());
        }
        written
    }
}

async fn adopt(ctx: &Context, gathering: Arc<Gathering>) -> Result<Outcome, Corrupt> {
    let complete = match blocking(move || gathering.open().partial.finish()).await {
        Ok(Ok(complete)) => complete,
        Ok(Err(FinishError::Mismatch { .. })) => return Err(Corrupt),
        Ok(Err(e)) => return Ok(Outcome::Later(with_causes(e))),
        Err(e) => return Ok(Outcome::Later(e.to_string())),
    };
    let mut expected = ctx.expect(vec![complete.digest.hash]).await;
    let file = VerifiedFile {
        digest: complete.digest,
        path: complete.path.clone(),
        outboard: complete.outboard.clone(),
        metadata: expected.metadata.pop().unwrap_or_default(),
        guard: Some(Box::new(complete)),
    };
    let hash = file.digest.hash;
    let (adopted, ()) = tokio::join!(ctx.store.adopt(file), expected.noted());
    Ok(match adopted {
        Ok(stored) => {
            let partials = ctx.partials.clone();
            match blocking(move || partials.remove_all_of(&hash)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot remove the partials of a stored asset")
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot remove the partials of a stored asset")
                }
            }
            stored_as(stored)
        }
        Err(e) => refusal(&e),
    })
}

/// Maps the result of a commit to the outcome of the asset.
pub(super) fn stored_as(stored: Stored) -> Outcome {
    match stored {
        Stored::New => Outcome::Stored,
        Stored::Existed => Outcome::AlreadyHeld,
    }
}

/// Maps an error of the store to the outcome of the asset.
pub(super) fn refusal(error: &StoreError) -> Outcome {
    match error {
        StoreError::TooLarge(_) | StoreError::Unsupported(_) => Outcome::Refused(error.to_string()),
        StoreError::Unreachable(_) => Outcome::StoreDown(error.to_string()),
        _ => Outcome::Later(error.to_string()),
    }
}
