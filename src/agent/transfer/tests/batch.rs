//! Batches between two honest sides.
use super::*;
use crate::store::SMALL_BYTES_MAX;

const BLAKE3: HashAlgorithm = HashAlgorithm::Blake3;
const BOTH: [HashAlgorithm; 2] = [HashAlgorithm::Blake3, HashAlgorithm::Sha256];

const KIB: u64 = 1024;
const SMALL_SIZES: [u64; 7] =
    [0, 1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, SMALL_BYTES_MAX - 1, SMALL_BYTES_MAX];

fn outcomes(receipt: &Receipt) -> Vec<Outcome> {
    receipt.received.iter().map(|r| r.outcome.clone()).collect()
}

#[tokio::test]
async fn small_assets_arrive_inline_and_when_wanted() {
    for algorithm in BOTH {
        for inline in [true, false] {
            let (from, digests) = Side::holding(algorithm, &SMALL_SIZES).await;
            let to = Side::new(algorithm);
            let (sent, receipt) = exchange(&from, &to, &digests, inline).await;
            assert_eq!(sent.unwrap(), vec![Outcome::Stored; digests.len()]);
            receipt.end.unwrap();
            for digest in &digests {
                assert!(to.holds_whole(digest).await, "{algorithm:?} {inline} {digest:?}");
            }
        }
    }
}
