//! Every version comes back: history, restore, undo.

use can_sync::clock::wall_ms;
use can_sync::folders::status::{ContentView, RestoreRequest, UndoRequest};

use common::logs::was_logged;

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
    until("the first is back", &devices, async || {
        [&a, &b].iter().all(|device| device.read("plan").as_deref() == Some(b"one"))
    })
    .await;
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
async fn an_undo_that_removes_very_many_new_files_is_not_held_on_other_devices() {
    let (a, b) = two().await;
    a.write("old", b"old");
    equal(&a, &b, 1).await;
    let devices = [&a.device, &b.device];
    let since_ms = wall_ms();
    until("the changes are later than that", &devices, async || wall_ms() > since_ms).await;
    for n in 0..120_u64 {
        a.write(&format!("{}/{n}.raw", n % 5), &content(n, 500));
    }
    equal(&a, &b, 121).await;
    let undo = UndoRequest { since_ms: Some(since_ms), device: None, dry_run: false };
    let undone = a.device.handle().folders().undo(NAME, undo).await.unwrap();
    assert_eq!((undone.brought_back, undone.removed), (0, 120));
    equal(&a, &b, 1).await;
    assert!(!was_logged(&["very many files", b.dir.to_str().unwrap()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undo_of_one_device_leaves_the_changes_of_the_others() {
    let (a, b) = two().await;
    for name in ["of a", "of b", "of both"] {
        a.write(name, b"first");
    }
    equal(&a, &b, 3).await;
    let devices = [&a.device, &b.device];
    let since_ms = wall_ms();
    until("the changes are later than that", &devices, async || wall_ms() > since_ms).await;
    b.write("of both", b"second, of b");
    b.write("of b", b"second, of b");
    let of_b = Some(&b"second, of b"[..]);
    until("a has them", &devices, async || {
        a.read("of both").as_deref() == of_b && a.read("of b").as_deref() == of_b
    })
    .await;
    a.write("of both", b"third, of a");
    a.write("of a", b"second, of a");
    a.write("new", b"of a");
    equal(&a, &b, 4).await;
    let device = Some(a.device.node_id);
    let undo = UndoRequest { since_ms: Some(since_ms), device, dry_run: false };
    b.device.handle().folders().undo(NAME, undo).await.unwrap();
    equal(&a, &b, 3).await;
    assert_eq!(a.read("of a").unwrap(), b"first");
    assert_eq!(a.read("of b").unwrap(), b"second, of b");
    assert_eq!(a.read("of both").unwrap(), b"third, of a", "both changed it: it stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_comes_back_as_it_was_at_a_time() {
    let (a, b) = two().await;
    let devices = [&a.device, &b.device];
    let mut times = Vec::new();
    for text in ["one", "two", "three"] {
        a.write("plan", text.as_bytes());
        until("b has it", &devices, async || b.read("plan").as_deref() == Some(text.as_bytes()))
            .await;
        let now_ms = wall_ms();
        times.push(now_ms);
        until("the next is later", &devices, async || wall_ms() > now_ms).await;
    }
    let folders = b.device.handle().folders();
    let at = |at_ms| RestoreRequest { path: "plan".into(), version: None, at_ms: Some(at_ms) };
    for (at_ms, text) in [(times[0], "one"), (times[1], "two"), (times[2], "three")] {
        folders.restore(NAME, at(at_ms)).await.unwrap();
        until("it is there", &devices, async || a.read("plan").as_deref() == Some(text.as_bytes()))
            .await;
    }
    let refused = folders.restore(NAME, at(1)).await.unwrap_err().to_string();
    assert!(refused.contains("was not there at that time"), "{refused}");
    assert_eq!(b.read("plan").unwrap(), b"three", "to restore removes nothing");
    let both = RestoreRequest { version: Some(1), ..at(1) };
    assert!(folders.restore(NAME, both).await.unwrap_err().to_string().contains("not both"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_says_how_a_path_stands() {
    let (a, b) = two().await;
    b.write(".cansyncignore", b".cansyncignore\n*.log\n");
    a.write("plan", b"one");
    a.write("x.log", b"log");
    until("b has the plan", &[&a.device, &b.device], async || b.read("plan").is_some()).await;
    equal_but_logs(&a, &b).await;
    let folders = b.device.handle().folders();
    let why = async |path: &str| folders.why(NAME, path).await.unwrap().lines.join("\n");
    assert_eq!(why("plan").await, "directory and folder are equal");
    assert!(why("x.log").await.contains("it is ignored"), "{}", why("x.log").await);
    assert!(why("none").await.contains("never held anything"));
    folders.pause(NAME).await.unwrap();
    assert!(why("plan").await.contains("is paused"));
    folders.resume(NAME).await.unwrap();
    fs::remove_file(a.path("plan")).unwrap();
    until("it is gone", &[&a.device, &b.device], async || b.read("plan").is_none()).await;
    until("why knows", &[&a.device, &b.device], async || why("plan").await == "it was removed")
        .await;
}

async fn equal_but_logs(a: &Bound, b: &Bound) {
    until("both are up to date", &[&a.device, &b.device], async || {
        a.state().await == BindingState::UpToDate && b.state().await == BindingState::UpToDate
    })
    .await;
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
    let undo = UndoRequest { since_ms: Some(since_ms), device: None, dry_run: true };
    let preview = folders.undo(NAME, undo.clone()).await.unwrap();
    assert!(preview.held);
    assert_ne!(a.tree(), before, "a preview changes nothing");
    assert_eq!((preview.brought_back, preview.removed), (300, 301), "what is held is counted");
    let undone = folders.undo(NAME, UndoRequest { dry_run: false, ..undo }).await.unwrap();
    assert_eq!((undone.brought_back, undone.removed, undone.missing), (300, 301, 0));
    until("all is as it was", &devices, async || a.tree() == before && b.tree() == before).await;

    // The encrypted ones are in the history, and the undo can be undone.
    let history = b.device.handle().folders().history(NAME, "1/1.doc.locked").await.unwrap();
    assert!(matches!(history.versions[1].content, ContentView::File { .. }));
}
