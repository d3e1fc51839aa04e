//! Performs the engine's effects about copies: reads the index for it, and writes what it learns of
//! other devices. [`crate::copies`] decides about assets.

use crate::clock::wall_ms;
use crate::copies::judge::Judge;
use crate::core::engine::{Effect, Input};
use crate::core::limits::HASHES_PER_FRAME_MAX;
use crate::core::want::Want;
use crate::group::internal;
use crate::state::index::{Epoch, IndexError};

use super::fact::{Fact, Facts, Reload};
use super::handle::Reply;
use super::parts::Parts;
use super::tasks::Tasks;

/// Performs an effect about copies. `own_epoch` is that of the set in the engine.
pub(super) fn perform(
    effect: Effect,
    judge: Judge<Fact>,
    own_epoch: Epoch,
    facts: &Facts,
    tasks: &mut Tasks,
) {
    let (index, facts) = (judge.index.clone(), facts.clone());
    match effect {
        Effect::ReadAbsent { conn, log, after_turn } => {
            tasks.spawn_blocking("index query", move || {
                let page = index.absent_page(log, after_turn, HASHES_PER_FRAME_MAX);
                let page = page.inspect_err(failed).ok();
                facts.blocking_send(Fact::Input(Input::AbsentRead { conn, page }));
            });
        }
        Effect::ReadSizes { conn, hashes } => {
            tasks.spawn_blocking("index query", move || {
                let sizes = index.sizes(&hashes).inspect_err(failed);
                let sizes = sizes.unwrap_or_else(|_| vec![None; hashes.len()]);
                facts.blocking_send(Fact::Input(Input::SizesRead { conn, sizes }));
            });
        }
        Effect::AskMissing { conn, peer, after } => {
            tasks.spawn_blocking("index query", move || {
                let page = index.missing_at(&peer, after, HASHES_PER_FRAME_MAX);
                let page = page.inspect_err(failed);
                let (hashes, next) = page.unwrap_or_default();
                facts.blocking_send(Fact::Input(Input::Missing { conn, hashes, next }));
            });
        }
        Effect::TakeAbsent { conn, peer, page } => {
            tasks.spawn("absent hashes of a peer", async move {
                let (belief, restarts) = match judge.take_absent(peer, *page).await {
                    Ok((belief, restarts)) => (Some(belief), restarts),
                    Err(error) => {
                        tracing::error!("taking up what a device lacks: {error:#}");
                        (None, false)
                    }
                };
                judge.send(Input::Believed { conn, peer, belief, restarts }).await;
            });
        }
        Effect::Judge { conn, hashes } => {
            tasks.spawn("judge a difference", async move {
                let wanted = judge.split(hashes).await.unwrap_or_else(|error| {
                    tracing::error!("judging what another device has: {error:#}");
                    Vec::new()
                });
                judge.send(Input::Judged { conn, wanted }).await;
            });
        }
        Effect::Confirm { peer, to_seq, absent } => {
            tasks.spawn_blocking("confirm a holder", move || {
                match index.confirm(&own_epoch, &peer, to_seq, &absent, wall_ms()) {
                    Ok(true) => {
                        facts.blocking_send(Fact::Input(Input::Confirmed { peer }));
                    }
                    Ok(false) => {}
                    Err(error) => tracing::warn!("saving what a device holds: {error:#}"),
                }
            });
        }
        Effect::Doubt { peer, hashes } => {
            tasks.spawn_blocking("doubt a holder", move || {
                if let Err(error) = index.doubt(&peer, &hashes) {
                    tracing::warn!("saving what a device lacks: {error:#}");
                }
            });
        }
        _ => {}
    }
}

/// Sets what this device wants, and has the engine rebuilt so that it acts on nothing else.
pub(super) fn set_want(parts: &mut Parts, want: Want, reply: Reply<()>) {
    let (keeper, facts) = (parts.keeper.clone(), parts.facts.clone());
    parts.tasks.spawn("want", async move {
        match keeper.set_want(want).await {
            Ok(()) => facts.send(Fact::Reload(Reload::OtherWant { reply })).await,
            Err(error) => {
                // The requester may have gone.
                let _ = reply.send(Err(internal("saving what is wanted", &error)));
            }
        }
    });
}

fn failed(error: &IndexError) {
    tracing::error!("reading the index: {error:#}");
}
