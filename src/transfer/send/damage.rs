//! What follows when an asset was read wrong, or right again.

use crate::core::ids::{Digest, Hash};
use crate::store::Condition;
use crate::transfer::context::Context;
use crate::transfer::outcome::Outcome;

/// Lets the store confirm and mark damage; then the asset rests.
pub(super) async fn made_sure(ctx: &Context, digest: &Digest, outcome: Outcome) -> Outcome {
    if outcome != Outcome::Damaged {
        return outcome;
    }
    match ctx.store.verify(digest.hash).await {
        Ok(Condition::Whole) => {
            return Outcome::Later("it was read wrong once and right the next time".into());
        }
        Ok(Condition::Absent) => return Outcome::Unavailable,
        Ok(Condition::Damaged(_)) => {}
        Err(error) => {
            tracing::warn!(hash = %digest.hash, %error, "cannot mark an asset as damaged")
        }
    }
    ctx.damaged.found(digest.hash);
    Outcome::Damaged
}

/// Notes that the asset was read as a whole. A store that had marked it as damaged checks it again.
pub(super) async fn healed(ctx: &Context, hash: &Hash) {
    if ctx.damaged.healed(hash)
        && let Err(error) = ctx.store.verify(*hash).await
    {
        tracing::debug!(%hash, %error, "cannot check an asset that was damaged before");
    }
}
