//! Small contents: many to a frame, each read as a whole and verified.

use bytes::Bytes;

use super::asset::{Asset, Lost};
use super::damage::{healed, made_sure};
use crate::core::ids::{Digest, HashAlgorithm};
use crate::core::limits::OFFER_ENTRIES_MAX;
use crate::store::StoreError;
use crate::transfer::context::{Context, blocking};
use crate::transfer::outcome::{Outcome, TransferError};
use crate::wire::batch::Content;

/// Content bytes in one frame of small contents, unless a single content is larger.
const CONTENTS_BYTES: u64 = 256 * 1024;

/// Splits small assets into groups that fill one frame each.
pub(super) fn groups(assets: Vec<Asset>) -> Vec<Vec<Asset>> {
    let mut groups: Vec<Vec<Asset>> = Vec::new();
    let mut bytes = 0;
    for asset in assets {
        bytes += asset.digest.size_bytes;
        match groups.last_mut() {
            Some(group) if bytes <= CONTENTS_BYTES && group.len() < OFFER_ENTRIES_MAX => {
                group.push(asset);
            }
            _ => {
                bytes = asset.digest.size_bytes;
                groups.push(vec![asset]);
            }
        }
    }
    groups
}

pub(super) async fn read_group(
    ctx: &Context,
    group: Vec<Asset>,
) -> Result<(Vec<Content>, Vec<Lost>), TransferError> {
    let digests: Vec<_> = group.iter().map(|a| a.digest).collect();
    let read = match ctx.store.read_small(&digests).await {
        Ok(read) => read.into_iter().map(Ok).collect(),
        // One unreadable asset must not hold up the others.
        Err(e) if !e.is_temporary() => read_one_by_one(ctx, &digests).await,
        Err(e) => return Err(e.into()),
    };
    let algorithm = ctx.algorithm;
    let judged: Vec<_> = blocking(move || {
        let judge = |(asset, read): (Asset, _)| {
            let judged = judge(algorithm, &asset.digest, read);
            (asset, judged)
        };
        group.into_iter().zip(read).map(judge).collect()
    })
    .await?;
    let mut contents = Vec::with_capacity(judged.len());
    let mut lost = Vec::new();
    for (asset, judged) in judged {
        match judged {
            Ok(bytes) => {
                healed(ctx, &asset.digest.hash).await;
                contents.push(Content { label: asset.label, bytes });
            }
            Err(outcome) => {
                let outcome = made_sure(ctx, &asset.digest, outcome).await;
                lost.push(asset.lost(outcome));
            }
        }
    }
    Ok((contents, lost))
}

async fn read_one_by_one(
    ctx: &Context,
    digests: &[Digest],
) -> Vec<Result<Option<Bytes>, StoreError>> {
    let mut read = Vec::with_capacity(digests.len());
    for digest in digests {
        let one = ctx.store.read_small(std::slice::from_ref(digest)).await;
        read.push(one.map(|mut one| one.pop().flatten()));
    }
    read
}

fn judge(
    algorithm: HashAlgorithm,
    digest: &Digest,
    read: Result<Option<Bytes>, StoreError>,
) -> Result<Bytes, Outcome> {
    match read {
        Ok(Some(bytes)) => {
            let sound =
                bytes.len() as u64 == digest.size_bytes && algorithm.hash(&bytes) == digest.hash;
            if sound { Ok(bytes) } else { Err(Outcome::Damaged) }
        }
        Ok(None) | Err(StoreError::NotFound(_)) => Err(Outcome::Unavailable),
        Err(StoreError::Damaged(_)) => Err(Outcome::Damaged),
        Err(e) => Err(Outcome::Later(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::Hash;

    #[test]
    fn groups_of_small_contents_fill_frames_and_never_overflow_one() {
        let asset = |size_bytes| Asset::entry(0, Digest { hash: Hash([0; 32]), size_bytes });
        for (size, count, per_group) in
            [(0, 1500, OFFER_ENTRIES_MAX), (CONTENTS_BYTES, 3, 1), (CONTENTS_BYTES / 4, 9, 4)]
        {
            let groups = groups(vec![asset(size); count]);
            assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), count);
            assert_eq!(groups[0].len(), per_group);
        }
    }
}
