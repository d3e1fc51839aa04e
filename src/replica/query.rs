//! Answers the engine's queries from the index, and loads the set of known hashes at the start.
//! Blocks: run it on a blocking thread.

use anyhow::{Context as _, Result};

use crate::core::engine::KnownSet;
use crate::core::ids::{Digest, GroupId, Hash};
use crate::core::reconcile::{Answer, Query, shard_range};
use crate::core::sketch::{CodedCells, Sketch, SketchKey};
use crate::state::index::Index;

/// The rows read at a time while the sketch catches up with the index.
const REPLAY_ROWS: usize = 10_000;

/// Answers a reconcile's query.
pub(crate) fn answer(index: &Index, query: Query) -> Answer {
    try_answer(index, query).unwrap_or_else(|error| {
        tracing::error!("reading the index: {error:#}");
        Answer::Failed
    })
}

fn try_answer(index: &Index, query: Query) -> Result<Answer> {
    Ok(match query {
        Query::Since { after_seq, up_to_seq, limit } => {
            let (items, more) = index.since(after_seq, up_to_seq, limit)?;
            Answer::Since { items, more }
        }
        Query::Above { after, up_to_seq, limit } => {
            let (hashes, more) = index.above(after, up_to_seq, limit)?;
            Answer::Above { hashes, more }
        }
        Query::Known { hashes } => Answer::Known(index.seqs(&hashes)?),
        Query::Shard { key, shard_bits, shard, up_to_seq } => {
            let mut cells = CodedCells::new(key);
            index.for_each_in(shard_range(shard_bits, shard), up_to_seq, |hash| {
                cells.insert(&hash);
            })?;
            Answer::Shard(cells)
        }
    })
}

/// Splits the hashes into those that are held, with sizes, and those that are not.
pub(crate) fn sizes(index: &Index, hashes: Vec<Hash>) -> (Vec<Digest>, Vec<Hash>) {
    let sizes = index.sizes(&hashes).unwrap_or_else(|error| {
        tracing::error!("reading the index: {error:#}");
        vec![None; hashes.len()]
    });
    let (mut held, mut missing) = (Vec::new(), Vec::new());
    for (hash, size) in hashes.into_iter().zip(sizes) {
        match size {
            Some(size_bytes) => held.push(Digest { hash, size_bytes }),
            None => missing.push(hash),
        }
    }
    (held, missing)
}

/// Loads the saved sketch and updates it to the index's head; builds a new one if none fits.
pub(crate) fn load(index: &Index, group_id: &GroupId) -> Result<KnownSet> {
    let saved = index.load_sketch().context("reading the saved sketch")?;
    let sketch = saved.and_then(|(bytes, seq)| {
        let of_group = bytes.strip_prefix(group_id.as_bytes().as_slice())?;
        Sketch::from_bytes(SketchKey::derive(group_id), of_group).ok().map(|sketch| (sketch, seq))
    });
    match sketch {
        Some((sketch, seq)) => replay(index, sketch, seq),
        None => scan(index, group_id),
    }
}

/// Builds a sketch from every row of the index.
pub(crate) fn scan(index: &Index, group_id: &GroupId) -> Result<KnownSet> {
    replay(index, Sketch::new(SketchKey::derive(group_id)), 0)
}

fn replay(index: &Index, mut sketch: Sketch, mut seq: u64) -> Result<KnownSet> {
    loop {
        let (rows, more) = index.since(seq, u64::MAX, REPLAY_ROWS).context("reading the index")?;
        for (row_seq, hash) in rows {
            sketch.insert(&hash);
            seq = row_seq;
        }
        if !more {
            return Ok(KnownSet { sketch, epoch: index.head().epoch, head_seq: seq });
        }
    }
}

/// Saves the sketch together with its group.
pub(crate) fn save(index: &Index, group_id: &GroupId, known: &KnownSet) -> Result<()> {
    let mut bytes = group_id.as_bytes().to_vec();
    bytes.extend_from_slice(&known.sketch.to_bytes());
    index.save_sketch(&known.epoch, &bytes, known.head_seq).context("saving the sketch")
}
