//! An agent that ends after the journal or the directory has a new version, and before it recorded
//! that both are equal: what users and other devices do until the next start is not undone by it.

use super::*;

/// What is not written to `folders.db` when an agent ends before it records what became of a path.
const CUT: [(&str, &str); 3] = [
    ("base_put", "INSERT ON base"),
    ("base_gone", "DELETE ON base"),
    ("done", "DELETE ON under_way"),
];

/// Stops a device, and has it record nothing of what becomes of paths from its next start on.
async fn record_nothing(bound: &mut Bound) {
    bound.device.down().await;
    for (name, what) in CUT {
        let cut = format!("CREATE TRIGGER {name} BEFORE {what} BEGIN SELECT RAISE(IGNORE); END");
        in_folders_db(&bound.device, &cut);
    }
    bound.device.up().await;
}

/// Stops a device, and mends that.
async fn stop_and_mend(bound: &mut Bound) {
    bound.device.down().await;
    for (name, _) in CUT {
        in_folders_db(&bound.device, &format!("DROP TRIGGER {name}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_user_removes_or_renames_after_a_crash_between_journal_and_base_stays_so() {
    let (mut a, b) = two().await;
    a.write("stays", b"stays");
    a.write("edited", b"one");
    a.write("came-back", b"back");
    equal(&a, &b, 3).await;
    record_nothing(&mut a).await;
    a.write("removed", b"removed");
    a.write("renamed", b"renamed");
    a.write("edited", b"two");
    fs::remove_file(a.path("came-back")).unwrap();
    until("b has all of it", &[&a.device, &b.device], async || {
        b.read("removed").is_some()
            && b.read("renamed").is_some()
            && b.read("edited").as_deref() == Some(b"two")
            && b.read("came-back").is_none()
    })
    .await;
    stop_and_mend(&mut a).await;
    fs::remove_file(a.path("removed")).unwrap();
    fs::rename(a.path("renamed"), a.path("new-name")).unwrap();
    // To what it was before, and a removal taken back.
    a.write("edited", b"one");
    a.write("came-back", b"back");
    a.device.up().await;
    equal(&a, &b, 4).await;
    let names: Vec<String> = a.tree().into_keys().collect();
    assert_eq!(names, ["came-back", "edited", "new-name", "stays"]);
    assert_eq!(b.read("edited").unwrap(), b"one");
    assert_eq!(b.read("new-name").unwrap(), b"renamed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_remove_or_edit_after_a_crash_between_directory_and_base_is_no_conflict() {
    let (a, mut b) = two().await;
    a.write("stays", b"stays");
    a.write("edited-twice", b"one");
    equal(&a, &b, 2).await;
    record_nothing(&mut b).await;
    a.write("removed", b"removed");
    a.write("edited", b"one");
    a.write("renamed", &content(1, 300_000));
    a.write("edited-twice", b"two");
    until("b has all of it", &[&a.device, &b.device], async || {
        b.read("removed").is_some()
            && b.read("edited").is_some()
            && b.path("renamed").exists()
            && b.read("edited-twice").as_deref() == Some(b"two")
    })
    .await;
    stop_and_mend(&mut b).await;
    fs::remove_file(a.path("removed")).unwrap();
    fs::rename(a.path("renamed"), a.path("new-name")).unwrap();
    a.write("edited", b"two");
    a.write("edited-twice", b"three");
    until("a has recorded it", &[&a.device], async || {
        a.state().await == BindingState::UpToDate && a.status().await.files == 4
    })
    .await;
    b.device.up().await;
    equal(&a, &b, 4).await;
    let names: Vec<String> = b.tree().into_keys().collect();
    assert_eq!(names, ["edited", "edited-twice", "new-name", "stays"]);
    assert_eq!(b.read("edited").unwrap(), b"two");
    assert_eq!(b.read("edited-twice").unwrap(), b"three");
}
