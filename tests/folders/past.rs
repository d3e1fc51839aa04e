//! Every version comes back: history, restore, undo.

use can_sync::clock::wall_ms;
use can_sync::folders::status::{ContentView, RestoreRequest, UndoRequest};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_of_a_file_can_be_brought_back_on_any_device() {
    let (a, b) = two().await;
    let devices = [&a.device, &b.device];
    for (n, text) in ["one", "two", "three"].into_iter().enumerate() {
        a.write("plan", text.as_bytes());
        until("b has it", &devices, async || b.read("plan").as_deref() == Some(text.as_bytes()))
            .await;
        let history = b.device.handle().folders().history(NAME, "plan").await.unwrap();
        assert_eq!(history.versions.len(), n + 1);
    }
    fs::remove_file(a.path("plan")).unwrap();
    until("it is gone", &devices, async || !b.path("plan").exists()).await;
    let folders = b.device.handle().folders();
    let history = folders.history(NAME, "plan").await.unwrap();
    assert!(matches!(history.versions[0].content, ContentView::Absent));
    assert_eq!(history.versions.len(), 4);
    let version = |n| RestoreRequest { path: "plan".into(), version: Some(n), at_ms: None };
    folders.restore(NAME, version(3)).await.unwrap();
    until("the first is back", &devices, async || a.read("plan").as_deref() == Some(b"one")).await;
    // The numbers moved: there is one more.
    let last = RestoreRequest { path: "plan".into(), version: None, at_ms: None };
    fs::remove_file(b.path("plan")).unwrap();
    until("it is gone", &devices, async || !a.path("plan").exists()).await;
    folders.restore(NAME, last).await.unwrap();
    until("and back", &devices, async || a.read("plan").as_deref() == Some(b"one")).await;
    let unknown = folders.restore(NAME, version(99)).await.unwrap_err();
    assert!(unknown.to_string().contains("versions 0 to"), "{unknown}");
}

/// What ransomware does: each file is replaced by an encrypted one of another name, and a note says
/// whom to pay.
fn encrypt(bound: &Bound) {
    for name in bound.tree().into_keys() {
        let content = bound.read(&name).unwrap();
        let encrypted: Vec<u8> = content.iter().map(|byte| byte ^ 0x5a).collect();
        bound.write(&format!("{name}.locked"), &encrypted);
        fs::remove_file(bound.path(&name)).unwrap();
    }
    bound.write("READ_ME.txt", b"pay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undo_brings_every_byte_of_an_encrypted_folder_back_on_all_devices() {
    let (a, b) = two().await;
    for n in 0..300_u64 {
        a.write(&format!("{}/{n}.doc", n % 11), &content(n, 3_000));
    }
    equal(&a, &b, 300).await;
    let before = a.tree();
    let devices = [&a.device, &b.device];
    let since_ms = wall_ms();
    until("the changes are later than that", &devices, async || wall_ms() > since_ms).await;
    encrypt(&a);
    until("the brake holds", &devices, async || a.state().await == BindingState::Held).await;

    let folders = a.device.handle().folders();
    let undo = UndoRequest { since_ms, device: None, dry_run: true };
    let preview = folders.undo(NAME, undo.clone()).await.unwrap();
    assert!(preview.held);
    assert_ne!(a.tree(), before, "a preview changes nothing");
    let undone = folders.undo(NAME, UndoRequest { dry_run: false, ..undo }).await.unwrap();
    assert_eq!((undone.brought_back, undone.missing), (300, 0));
    until("all is as it was", &devices, async || a.tree() == before && b.tree() == before).await;

    // The encrypted ones are in the history, and the undo can be undone.
    let history = b.device.handle().folders().history(NAME, "1/1.doc.locked").await.unwrap();
    assert!(matches!(history.versions[1].content, ContentView::File { .. }));
}
