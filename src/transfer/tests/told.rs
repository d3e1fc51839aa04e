//! Metadata on streams of the plain protocol.

use std::collections::BTreeMap;

use prost::Message as _;

use super::hostile::Script;
use super::*;
use crate::core::journal::asset::{DESCRIPTION, JournalRow};
use crate::core::journal::op::Value;
use crate::core::journal::stamp::Hlc;
use crate::core::journal::told::{Told, ToldValue};
use crate::core::limits::FUTURE_MS_MAX;
use crate::replica::journal::{JournalHandle, share};
use crate::state::identity::Identity;
use crate::state::journal::Journal;
use crate::transfer::told::{hear, tell};
use crate::wire::plain::encode_meta;

/// The journal of a device that is alone.
async fn journal() -> (JournalHandle, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::from_bytes(&[1; 32]);
    let journal = Journal::open(&folder.path().join("journal.db"), &identity, [1; 32]).unwrap();
    let (journal, writer) = share(journal).unwrap();
    std::thread::spawn(move || writer.serve());
    journal.run(|journal, now_ms| journal.found("one", now_ms)).await.unwrap();
    (journal, folder)
}

fn described(hash: Hash, at_ms: u64) -> Told {
    let value = Some(Value::Text("cat".into()));
    let told = ToldValue { value, at: Hlc::from_ms(at_ms) };
    Told { fields: BTreeMap::from([(DESCRIPTION.to_owned(), told)]), ..Told::nothing(hash) }
}

async fn row(journal: &JournalHandle, hash: Hash) -> JournalRow {
    journal.read(move |reader| reader.asset(&hash)).await.unwrap()
}

#[tokio::test]
async fn metadata_are_taken_of_known_assets_alone_and_of_others_told_again() {
    let side = Side::new(HashAlgorithm::Blake3);
    let [known, unknown, early] = [1, 2, 3].map(|n| digest(HashAlgorithm::Blake3, &[n]));
    side.note(&[known, early]);
    let (journal, _folder) = journal().await;
    let now_ms = crate::clock::wall_ms();
    let all = [
        described(known.hash, now_ms),
        described(unknown.hash, now_ms),
        described(early.hash, now_ms + 2 * FUTURE_MS_MAX),
    ];
    let ((r, w), (r2, w2)) = pipe();
    let (later, heard) = tokio::join!(tell(r, w, &all), hear(&side.ctx, &journal, r2, w2));
    heard.unwrap();
    assert_eq!(later.unwrap(), [unknown.hash, early.hash]);
    assert_eq!(row(&journal, known.hash).await.description.as_deref(), Some("cat"));
    for hash in [unknown.hash, early.hash] {
        assert_eq!(row(&journal, hash).await, JournalRow::default(), "nothing of it is written");
    }
    journal.close().await;
}

#[tokio::test]
async fn a_stream_of_metadata_with_anything_else_is_a_violation_and_what_came_before_stays() {
    let side = Side::new(HashAlgorithm::Blake3);
    let known = digest(HashAlgorithm::Blake3, &[1]);
    side.note(&[known]);
    let (journal, _folder) = journal().await;
    let good = described(known.hash, crate::clock::wall_ms());
    let twice = encode_meta(&[good.clone(), good.clone()]).encode_to_vec();
    for (kind, payload) in [(Kind::MetaUpdate, twice), (Kind::Contents, Vec::new())] {
        let ((r, w), theirs) = pipe();
        let script = async {
            let mut script = Script::new(theirs);
            script.write(Kind::MetaUpdate, &encode_meta(std::slice::from_ref(&good))).await;
            script.writer.write_payload(kind, &payload).await.unwrap();
            script.writer.flush().await.unwrap();
            script
        };
        let (heard, _script) = tokio::join!(hear(&side.ctx, &journal, r, w), script);
        assert!(heard.unwrap_err().is_violation(), "{kind:?}");
        assert_eq!(row(&journal, known.hash).await.description.as_deref(), Some("cat"));
    }
    journal.close().await;
}
