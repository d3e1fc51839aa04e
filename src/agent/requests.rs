//! Requests about assets: fetch, and check that the store is listed. Each runs as a task that
//! answers it, by way of a fact if the loop has to act first. `membership` has those about the group.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::copies::judge::Judge;
use crate::core::doctor::NetworkFacts;
use crate::core::engine::Engine;
use crate::core::ids::Hash;
use crate::core::limits::FETCHES_MAX;
use crate::core::lookup::{HashPrefix, LookupError};

use super::fact::{Fact, TakenIn};
use super::handle::{Reply, RequestError};
use super::parts::Parts;
use crate::core::fetches::{FetchReply, FetchRequest, FetchState, FetchView};
use crate::group::internal;
use crate::state::copies::Copies;
use crate::state::index::Index;

/// How long `Request::Check` waits until the store is listed.
const CHECK_WAIT: Duration = Duration::from_secs(60);

pub(super) fn fetch(
    parts: &mut Parts,
    engine: &Engine,
    judge: Judge<Fact>,
    request: FetchRequest,
    reply: Reply<FetchReply>,
) {
    let hashes = match meant_assets(engine, &request.hashes) {
        Ok(hashes) => hashes,
        Err(error) => {
            // The requester may have gone.
            let _ = reply.send(Err(error));
            return;
        }
    };
    let (index, facts) = (parts.ctx.index.clone(), parts.facts.clone());
    let copies = parts.copies.clone();
    parts.tasks.spawn("fetch", async move {
        match take_back_and_look(copies, index, judge, hashes).await {
            Ok(assets) => facts.send(Fact::Fetch { assets, now: request.now, reply }).await,
            Err(error) => {
                // The requester may have gone.
                let _ = reply.send(Err(internal("reading the index", &error)));
            }
        }
    });
}

/// Wants what was evicted here back, and returns which of the assets the index holds.
async fn take_back_and_look(
    copies: Copies,
    index: Index,
    judge: Judge<Fact>,
    hashes: Vec<Hash>,
) -> Result<Vec<(Hash, bool)>> {
    let evicted = hashes.clone();
    let taken = spawn_blocking(move || copies.take_back(evicted)).await?;
    judge.reconsider(taken.context("wanting evicted assets back")?).await?;
    spawn_blocking(move || {
        let known = index.held(&hashes)?;
        Ok(hashes.into_iter().zip(known).collect())
    })
    .await?
}

fn meant_assets(engine: &Engine, prefixes: &[HashPrefix]) -> Result<Vec<Hash>, RequestError> {
    if prefixes.len() > FETCHES_MAX {
        let count = prefixes.len();
        let text = format!("{count} assets are too many at once: at most {FETCHES_MAX}");
        return Err(RequestError::Invalid(text));
    }
    prefixes.iter().map(|prefix| meant_asset(engine, prefix)).collect()
}

/// Finds an asset by its whole hash, or by the start of the hash of an asset known to be missing.
pub(super) fn meant_asset(engine: &Engine, prefix: &HashPrefix) -> Result<Hash, RequestError> {
    if let Some(hash) = prefix.whole() {
        return Ok(hash);
    }
    let found = prefix.only(engine.lacked(prefix.as_str()), |hash| *hash);
    found.map_err(|error| match error {
        LookupError::Unknown(_) => RequestError::Unknown(format!(
            "no asset that is here or known to be missing has a hash that starts with {}: give \
             the whole hash",
            prefix.as_str()
        )),
        error => error.into(),
    })
}

/// Builds the reply to a fetch; each hash comes with whether the index holds it.
pub(super) fn fetch_views(parts: &Parts, engine: &Engine, assets: Vec<(Hash, bool)>) -> FetchReply {
    let now_ms = parts.clock.now_ms();
    let view = |(hash, known): (Hash, bool)| FetchView {
        hash,
        state: match known {
            true => FetchState::Here,
            false => engine.fetching(now_ms, &hash),
        },
        left_bytes: parts.ctx.partials.left_bytes(&hash),
    };
    FetchReply { assets: assets.into_iter().map(view).collect() }
}

/// Measures the network.
pub(super) fn measure(parts: &mut Parts, reply: Reply<NetworkFacts>) {
    let net = parts.net.clone();
    parts.tasks.spawn("measure the network", async move {
        // The requester may have gone.
        let _ = reply.send(Ok(net.measure().await));
    });
}

/// Answers once the store is listed up to what it holds now.
pub(super) fn check(
    parts: &mut Parts,
    nudge: Arc<Notify>,
    mut taken_in: watch::Receiver<TakenIn>,
    reply: Reply<()>,
) {
    let store = parts.store.clone();
    parts.tasks.spawn("check", async move {
        let checked = timeout(CHECK_WAIT, async {
            let newest = store.info().await?.newest_cursor;
            let passes = taken_in.borrow().passes;
            loop {
                let now = *taken_in.borrow_and_update();
                // A store that does not report its newest cursor is listed twice: the first listing
                // may have begun before the request.
                let done = if newest > 0 { now.cursor >= newest } else { now.passes >= passes + 2 };
                if done {
                    return anyhow::Ok(());
                }
                nudge.notify_one();
                taken_in.changed().await?;
            }
        });
        let result = match checked.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(RequestError::Temporary(format!("{error:#}"))),
            Err(_) => {
                let seconds = CHECK_WAIT.as_secs();
                Err(RequestError::Temporary(format!(
                    "the store was not taken in within {seconds} s"
                )))
            }
        };
        // The requester may have gone.
        let _ = reply.send(result);
    });
}
