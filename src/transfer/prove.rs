//! Proofs of possession, on a stream of their own for each request: `Prove ->`, and back `Proving
//! ...`, `Proofs`, `ProofGroup ...`.
//!
//! V1  A proof is computed from a whole content that is read for it and has its own hash. Nothing is
//!     kept for the next proof. A damaged copy proves nothing.
//! V2  A lease is durable before the peer gets it. Then the asset is looked up again: if it was
//!     evicted meanwhile, the lease is not given.
//! V3  A peer gets one proof at a time, in its turn, and occupies the disk at most four fifths of the
//!     time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::context::blocking;
use super::outcome::{TransferError, is_large};
use super::pace::{KEEP_ALIVE, READ_STALL, WRITE_STALL};
use super::turns::Turns;
use crate::bao::{decode_piece, encode_piece_of_file};
use crate::clock::boot_ms;
use crate::core::ids::{Digest, Hash, HashAlgorithm, NodeId};
use crate::core::leases::{LEASE_MS, Lack, NoLease, proof_key};
use crate::core::limits::{PIECE_ALIGN_BYTES, SMALL_BYTES_MAX};
use crate::core::proof::{Proof, Prove};
use crate::net::frame::{FrameReader, FrameWriter};
use crate::net::{Connection, SendStream};
use crate::state::copies::Copies;
use crate::store::reading::{keyed_hashes, keyed_hashes_of_small};
use crate::store::{Store, StoreError};
use crate::wire::frame::Kind;
use crate::wire::proof::{
    decode_group, decode_proofs, decode_prove, encode_group, encode_proofs, encode_prove,
};
use crate::wire::proto::peer;

/// The longest pause after a proof.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The priority of the streams, see `Connection::open_stream`: people wait for them.
const PRIORITY: i32 = 15;

/// What a proof may take beside reading, and the slowest disk that it may be read from.
const DEADLINE: Duration = Duration::from_secs(120);
const SLOWEST_BYTES_PER_S: u64 = 4 << 20;

/// Answers the proofs that peers request. Clones share their turns.
#[derive(Clone)]
pub struct Prover {
    /// This device.
    pub me: NodeId,
    /// The store to prove.
    pub store: Arc<dyn Store>,
    /// Where leases are kept.
    pub copies: Copies,
    /// Whether the store is this agent's alone, so that a promise to keep an asset means something.
    pub can_promise: bool,
    turns: Arc<Turns>,
}

impl Prover {
    /// Makes the prover of a device.
    pub fn new(me: NodeId, store: Arc<dyn Store>, copies: Copies, can_promise: bool) -> Self {
        Self { me, store, copies, can_promise, turns: Arc::default() }
    }

    /// Answers the request on a stream that `peer` opened.
    ///
    /// # Errors
    /// The stream broke, or the peer broke the protocol.
    pub async fn serve<R, W>(&self, peer: NodeId, recv: R, send: W) -> Result<(), TransferError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let received_ms = boot_ms();
        let algorithm = self.store.info().await?.hash_algorithm;
        let mut reader = FrameReader::new(recv, Some(READ_STALL));
        let mut writer = FrameWriter::new(send, WRITE_STALL);
        let frame = reader.read().await?.ok_or(TransferError::Ended("Prove"))?;
        if frame.kind != Kind::Prove {
            return Err(TransferError::Protocol(format!("{:?} instead of Prove", frame.kind)));
        }
        let prove = decode_prove(frame.payload)?;
        let read_bytes = AtomicU64::new(0);
        let waited = alive(&mut writer, self.turns.take(peer), &read_bytes).await?;
        let began = Instant::now();
        let Some(turn) = waited else {
            let busy = vec![Proof::Lacks(Lack::Busy); prove.hashes.len()];
            writer.write(Kind::Proofs, &encode_proofs(&busy)).await?;
            return Ok(writer.finish().await?);
        };
        let proving = self.prove(peer, algorithm, &prove, received_ms, &read_bytes);
        let proofs = alive(&mut writer, proving, &read_bytes).await??;
        writer.write(Kind::Proofs, &encode_proofs(&proofs)).await?;
        if let ([Proof::Holds { .. }], [hash]) = (&proofs[..], &prove.hashes[..]) {
            for offset_bytes in &prove.groups {
                let Some(encoded) = self.group(*hash, *offset_bytes).await? else { break };
                writer.write(Kind::ProofGroup, &encode_group(*offset_bytes, encoded)).await?;
            }
        }
        writer.finish().await?;
        // V3.
        sleep((began.elapsed() / 4).min(PAUSE_MAX)).await;
        drop(turn);
        Ok(())
    }

    async fn prove(
        &self,
        peer: NodeId,
        algorithm: HashAlgorithm,
        prove: &Prove,
        received_ms: u64,
        read_bytes: &AtomicU64,
    ) -> Result<Vec<Proof>, TransferError> {
        let key = proof_key(&peer, &self.me, &prove.nonce);
        let digests = self.held(&prove.hashes).await?;
        let small: Vec<Digest> =
            digests.iter().flatten().copied().filter(|digest| !is_large(digest)).collect();
        let looked = keyed_hashes_of_small(&*self.store, algorithm, &small, &[key]).await?;
        let mut found: BTreeMap<Hash, Proof> = BTreeMap::new();
        for (digest, hashes) in small.iter().zip(looked) {
            found.insert(digest.hash, self.judge(digest.hash, hashes).await);
        }
        for digest in digests.iter().flatten().filter(|digest| is_large(digest)) {
            let hashes = keyed_hashes(&self.store, algorithm, *digest, &[key], read_bytes).await;
            found.insert(digest.hash, self.judge(digest.hash, hashes).await);
        }
        if prove.lease && self.can_promise {
            self.promise(peer, received_ms, &mut found).await?;
        }
        let lacking = Proof::Lacks(Lack::NotHeld);
        Ok(prove.hashes.iter().map(|hash| found.remove(hash).unwrap_or(lacking)).collect())
    }

    async fn judge(&self, hash: Hash, read: Result<Option<Vec<[u8; 32]>>, StoreError>) -> Proof {
        match read.map(|hashes| hashes.and_then(|hashes| hashes.first().copied())) {
            Ok(Some(proof)) => Proof::Holds { proof, lease_ms: 0 },
            Ok(None) | Err(StoreError::NotFound(_)) => Proof::Lacks(Lack::NotHeld),
            Err(StoreError::Damaged(_)) => {
                tracing::warn!(%hash, "an asset that a peer wants proven is damaged here");
                // The store reads the asset a second time and marks it as damaged.
                if let Err(error) = self.store.verify(hash).await {
                    tracing::warn!(%hash, %error, "cannot look at a damaged asset again");
                }
                Proof::Lacks(Lack::Damaged)
            }
            Err(error) => {
                tracing::info!(%hash, %error, "cannot prove an asset now");
                Proof::Lacks(Lack::Busy)
            }
        }
    }

    /// Adds leases to the proofs, see V2.
    async fn promise(
        &self,
        peer: NodeId,
        received_ms: u64,
        found: &mut BTreeMap<Hash, Proof>,
    ) -> Result<(), TransferError> {
        let is_held = |proof: &Proof| matches!(proof, Proof::Holds { .. });
        let proven = found.iter().filter(|(_, proof)| is_held(proof));
        let hashes: Vec<Hash> = proven.map(|(hash, _)| *hash).collect();
        let (copies, wanted, now_ms) = (self.copies.clone(), hashes.clone(), boot_ms());
        let granted = blocking(move || copies.grant(wanted, peer, now_ms)).await?;
        let granted =
            granted.map_err(|error| TransferError::Local(format!("keeping leases: {error}")))?;
        let still = self.held(&hashes).await?;
        let granted = self.take_back_added(peer, &hashes, granted, &still).await?;
        let still = self.held(&hashes).await?;
        for ((hash, granted), still) in hashes.iter().zip(granted).zip(still) {
            let Some(proof) = found.get_mut(hash) else { continue };
            match (proof, granted, still) {
                (Proof::Holds { lease_ms, .. }, Ok(()), Some(_)) => {
                    *lease_ms = LEASE_MS + now_ms.saturating_sub(received_ms);
                }
                (proof, Ok(()), None) => *proof = Proof::Lacks(Lack::NotHeld),
                (proof, _, _) => *proof = Proof::Lacks(Lack::Evicting),
            }
        }
        Ok(())
    }

    /// Gives leases on assets that were evicted and then added again by somebody here.
    async fn take_back_added(
        &self,
        peer: NodeId,
        hashes: &[Hash],
        mut granted: Vec<Result<(), NoLease>>,
        still: &[Option<Digest>],
    ) -> Result<Vec<Result<(), NoLease>>, TransferError> {
        for ((hash, granted), still) in hashes.iter().zip(&mut granted).zip(still) {
            if *granted != Err(NoLease::Evicted) || still.is_none() {
                continue;
            }
            let (copies, hash, now_ms) = (self.copies.clone(), *hash, boot_ms());
            let again = move || {
                copies.take_back(vec![hash])?;
                copies.grant(vec![hash], peer, now_ms)
            };
            let again = blocking(again).await?;
            let again = again.map_err(|e| TransferError::Local(format!("keeping leases: {e}")))?;
            *granted = again.first().copied().unwrap_or(Err(NoLease::Evicted));
        }
        Ok(granted)
    }

    async fn held(&self, hashes: &[Hash]) -> Result<Vec<Option<Digest>>, TransferError> {
        let mut digests = Vec::with_capacity(hashes.len());
        for hash in hashes {
            let found = self.store.lookup(*hash).await?;
            digests.push(found.filter(|asset| asset.is_held()).map(|asset| asset.entry.digest));
        }
        Ok(digests)
    }

    /// The bao encoding of a group, or a small content as it is. `None` where the store keeps no
    /// hash pairs.
    async fn group(&self, hash: Hash, at: u64) -> Result<Option<Vec<u8>>, TransferError> {
        let Some(digest) = self.held(&[hash]).await?.pop().flatten() else { return Ok(None) };
        if !is_large(&digest) {
            let content = self.store.read(hash, 0..digest.size_bytes).await?;
            return Ok(content.map(|content| content.to_vec()));
        }
        let end = digest.size_bytes.min(at.saturating_add(PIECE_ALIGN_BYTES));
        let Some(files) = self.store.bao_files(hash).await?.filter(|_| at < end) else {
            return Ok(None);
        };
        blocking(move || {
            encode_piece_of_file(&digest, at..end, &files.content, Some(&files.outboard)).ok()
        })
        .await
    }
}

/// Does `work`, and tells the other side meanwhile that it goes on.
async fn alive<W: AsyncWrite + Unpin, T>(
    writer: &mut FrameWriter<W>,
    work: impl Future<Output = T>,
    read_bytes: &AtomicU64,
) -> Result<T, TransferError> {
    let mut work = std::pin::pin!(work);
    loop {
        if let Ok(done) = timeout(KEEP_ALIVE, &mut work).await {
            return Ok(done);
        }
        let read_bytes = read_bytes.load(Ordering::Relaxed);
        writer.write(Kind::Proving, &peer::Proving { read_bytes }).await?;
        writer.flush().await?;
    }
}

/// What a peer answered.
#[derive(Debug)]
pub struct Answer {
    /// For each hash of the request.
    pub proofs: Vec<Proof>,
    /// The groups that were requested, with their offsets; fewer if the peer cannot send them.
    pub groups: Vec<(u64, Bytes)>,
}

/// Requests proofs of a peer. `bytes` is how much it has to read.
///
/// # Errors
/// It did not answer in time, or broke the protocol.
///
/// # Cancel safety
/// Safe: the peer notices that the stream is gone. A lease that it gave runs on.
pub async fn ask(
    connection: &Connection,
    prove: &Prove,
    bytes: u64,
) -> Result<Answer, TransferError> {
    let after = DEADLINE + Duration::from_secs(bytes / SLOWEST_BYTES_PER_S);
    let asked = async {
        let opened = timeout(READ_STALL, connection.open_stream(PRIORITY)).await;
        let opened = opened.map_err(|_| TransferError::Ended("a stream was free"))?;
        let (send, recv) =
            opened.map_err(|error| TransferError::Local(format!("opening a stream: {error}")))?;
        exchange(send, recv, prove).await
    };
    let overdue = |_| TransferError::Overdue { what: "proof", after };
    timeout(after, asked).await.map_err(overdue)?
}

async fn exchange(
    send: SendStream,
    recv: impl AsyncRead + Unpin,
    prove: &Prove,
) -> Result<Answer, TransferError> {
    let mut writer = FrameWriter::new(send, WRITE_STALL);
    writer.write(Kind::Prove, &encode_prove(prove)).await?;
    writer.flush().await?;
    let mut reader = FrameReader::new(recv, Some(READ_STALL));
    let proofs = loop {
        let frame = reader.read().await?.ok_or(TransferError::Ended("Proofs"))?;
        match frame.kind {
            Kind::Proving => {}
            Kind::Proofs => break decode_proofs(frame.payload, prove.hashes.len())?,
            other => return Err(TransferError::Protocol(format!("{other:?} instead of Proofs"))),
        }
    };
    let mut groups = Vec::new();
    while groups.len() < prove.groups.len()
        && let Some(frame) = reader.read().await?
    {
        if frame.kind != Kind::ProofGroup {
            return Err(TransferError::Protocol(format!("{:?} among groups", frame.kind)));
        }
        groups.push(decode_group(frame.payload)?);
    }
    Ok(Answer { proofs, groups })
}

/// Whether a device sent exactly the requested chunk groups, and each matches the asset's hash.
pub fn are_right(
    digest: &Digest,
    algorithm: HashAlgorithm,
    groups: &[u64],
    sent: &[(u64, Bytes)],
) -> bool {
    if digest.size_bytes <= SMALL_BYTES_MAX {
        return sent.first().is_some_and(|(_, content)| algorithm.hash(content) == digest.hash);
    }
    groups.iter().zip(sent).all(|(at, (sent_at, encoded))| {
        let range = *at..digest.size_bytes.min(at + PIECE_ALIGN_BYTES);
        at == sent_at && decode_piece(digest, range, encoded).is_some_and(|piece| piece.whole)
    })
}
