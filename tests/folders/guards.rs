//! What must never happen: a missing directory is no deletion, very many changes are held, and a bad
//! place is refused.

use can_sync::folders::status::UndoRequest;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_gone_is_not_a_mass_deletion_and_goes_on_when_it_is_back() {
    let (a, b) = two().await;
    for n in 0..20_u64 {
        a.write(&format!("{n}"), &content(n, 100));
    }
    equal(&a, &b, 20).await;
    let away = a.dir.with_extension("away");
    fs::rename(&a.dir, &away).unwrap();
    let devices = [&a.device, &b.device];
    until("a stops", &devices, async || a.state().await == BindingState::Stopped).await;
    assert!(a.problems().await.contains("is not there"), "{}", a.problems().await);
    // An empty directory in its place is not the one that was bound.
    fs::create_dir(&a.dir).unwrap();
    until("a says so", &devices, async || a.problems().await.contains(".can-sync-folder")).await;
    assert_eq!(b.tree().len(), 20);
    fs::remove_dir(&a.dir).unwrap();
    fs::rename(&away, &a.dir).unwrap();
    a.write("new", b"after");
    equal(&a, &b, 21).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mass_deletion_is_held_until_it_is_confirmed() {
    let (a, b) = two().await;
    for n in 0..120_u64 {
        a.write(&format!("{n}"), &content(n, 100));
    }
    equal(&a, &b, 120).await;
    for n in 0..100_u64 {
        fs::remove_file(a.path(&format!("{n}"))).unwrap();
    }
    let devices = [&a.device, &b.device];
    until("a is held", &devices, async || a.state().await == BindingState::Held).await;
    assert!(a.problems().await.contains("folder confirm"));
    assert!(b.tree().len() >= 69, "at most the first fifty are gone");
    a.device.handle().folders().confirm(NAME).await.unwrap();
    // Though a wrote all of it itself, minutes ago.
    until("b holds what came from a", &devices, async || b.state().await == BindingState::Held)
        .await;
    let name = a.device.status().device.name;
    assert!(b.problems().await.contains(&format!("came from {name}.")), "{}", b.problems().await);
    assert!(b.tree().len() >= 69, "at most the first fifty are gone");
    b.device.handle().folders().confirm(NAME).await.unwrap();
    equal(&a, &b, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_saved_again_and_again_holds_no_folder() {
    let (a, b) = two().await;
    let devices = [&a.device, &b.device];
    for n in 0..60_u8 {
        a.write("draft", &[n; 10]);
        until("b has it", &devices, async || b.read("draft").as_deref() == Some(&[n; 10])).await;
    }
    equal(&a, &b, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undo_without_a_time_brings_back_what_is_held_and_what_passed_just_before() {
    let (a, b) = two().await;
    a.write("kept", b"of before");
    for n in 0..120_u64 {
        a.write(&format!("{n}"), &content(n, 100));
    }
    equal(&a, &b, 121).await;
    let before = a.tree();
    let folders = a.device.handle().folders();
    let undo = |since_ms| UndoRequest { since_ms, device: None, dry_run: false };
    let refused = folders.undo(NAME, undo(None)).await.unwrap_err().to_string();
    assert!(refused.contains("no changes are held"), "{refused}");
    for n in 0..40_u64 {
        fs::remove_file(a.path(&format!("{n}"))).unwrap();
    }
    equal(&a, &b, 81).await;
    for n in 40..120_u64 {
        fs::remove_file(a.path(&format!("{n}"))).unwrap();
    }
    let devices = [&a.device, &b.device];
    until("a is held", &devices, async || a.state().await == BindingState::Held).await;
    // All would go, and the deletion would pass.
    let refused = folders.undo(NAME, undo(Some(1))).await.unwrap_err().to_string();
    assert!(refused.contains("had no file yet"), "{refused}");
    assert_eq!(a.state().await, BindingState::Held);
    folders.undo(NAME, undo(None)).await.unwrap();
    equal(&a, &b, 121).await;
    assert_eq!(a.tree(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_folder_changes_nothing_until_it_is_resumed() {
    let (a, b) = two().await;
    a.write("one", b"1");
    equal(&a, &b, 1).await;
    b.device.handle().folders().pause(NAME).await.unwrap();
    b.write("of-b", b"b");
    a.write("of-a", b"a");
    let devices = [&a.device, &b.device];
    until("a has written it down", &devices, async || {
        a.status().await.files == 2 && a.state().await == BindingState::UpToDate
    })
    .await;
    assert!(!b.path("of-a").exists() && !a.path("of-b").exists());
    assert_eq!(b.state().await, BindingState::Paused);
    b.device.handle().folders().resume(NAME).await.unwrap();
    equal(&a, &b, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_content_that_rots_before_it_is_written_comes_again_from_the_other_device() {
    let (a, b) = two().await;
    a.write("one", b"1");
    equal(&a, &b, 1).await;
    b.device.handle().folders().pause(NAME).await.unwrap();
    a.write("large", &content(9, 3 * 1024 * 1024));
    let devices = [&a.device, &b.device];
    until("b holds it", &devices, async || b.device.status().store.assets == 2).await;
    let (_, stored) = files_below(&b.device.home.store_dir().join("content"))
        .into_iter()
        .map(|path| (path.metadata().unwrap().len(), path))
        .max()
        .unwrap();
    let mut bytes = fs::read(&stored).unwrap();
    bytes[2_000_000] ^= 1;
    fs::write(&stored, bytes).unwrap();
    b.device.handle().folders().resume(NAME).await.unwrap();
    equal(&a, &b, 2).await;
    assert_eq!(b.device.status().store.damaged, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_inside_another_bound_one_or_around_the_home_is_refused() {
    let a = Bound::new().await;
    let folders = a.device.handle().folders();
    folders.add(request(&a.dir)).await.unwrap();
    fs::create_dir(a.path("inner")).unwrap();
    let inner = folders.add(request(&a.path("inner"))).await.unwrap_err();
    assert!(inner.to_string().contains("overlaps"), "{inner}");
    let outer = folders.add(request(a.dir.parent().unwrap())).await.unwrap_err();
    assert!(outer.to_string().contains("overlaps"), "{outer}");
    let home = a.device.home.state_dir().parent().unwrap().to_owned();
    let around = folders.add(request(&home)).await.unwrap_err();
    assert!(around.to_string().contains("its own files"), "{around}");
    let missing = folders.add(request(Path::new("/nowhere/at/all"))).await.unwrap_err();
    assert!(missing.to_string().contains("cannot open"), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_binding_leaves_the_directory_and_the_folder_as_they_are() {
    let (a, b) = two().await;
    a.write("one", b"1");
    equal(&a, &b, 1).await;
    b.device.handle().folders().remove(NAME).await.unwrap();
    a.write("two", b"2");
    assert_eq!(b.read("one").unwrap(), b"1");
    join(&b).await;
    equal(&a, &b, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_only_feeds_the_folder_is_never_written_to() {
    let (a, b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    a.write("card/1.jpg", &content(1, 1_000));
    let feed = BindRequest { mode: Mode::In, ..request(&a.dir) };
    a.device.handle().folders().add(feed).await.unwrap();
    join(&b).await;
    equal(&a, &b, 1).await;
    fs::remove_file(a.path("card/1.jpg")).unwrap();
    b.write("of-b", b"b");
    a.write("card/2.jpg", &content(2, 1_000));
    let devices = [&a.device, &b.device];
    until("b has the second", &devices, async || b.path("card/2.jpg").exists()).await;
    assert!(b.path("card/1.jpg").exists(), "what is deleted on the card stays in the folder");
    assert!(!a.path("of-b").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_only_shows_the_folder_sets_edits_aside() {
    let (a, b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    a.write("plan", b"of a");
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    let devices = [&a.device, &b.device];
    until("b knows it", &devices, async || b.device.handle().folders().find(NAME).await.is_ok())
        .await;
    let show = BindRequest { mode: Mode::Out, name: None, ..request(&b.dir) };
    b.device.handle().folders().join(NAME, show).await.unwrap();
    until("b shows it", &devices, async || b.read("plan").is_some()).await;
    b.write("plan", b"edited by b");
    until("b shows the folder again", &devices, async || {
        b.read("plan").as_deref() == Some(b"of a") && b.tree().len() == 2
    })
    .await;
    let kept = b.tree().into_keys().find(|name| name.contains("(local, ")).unwrap();
    assert_eq!(b.read(&kept).unwrap(), b"edited by b");
    assert_eq!(a.read("plan").unwrap(), b"of a");
    assert_eq!(a.tree().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strange_names_and_things_are_synced_or_told_and_hold_up_nothing() {
    use std::os::unix::ffi::OsStrExt as _;
    let (a, b) = two().await;
    let names: [&[u8]; 6] = [
        b"new\nline",
        b"\x1b[31mred",
        b"\xff\xfe",
        &[b'n'; 255],
        "e\u{301}".as_bytes(),
        "\u{e9}".as_bytes(),
    ];
    for name in names {
        fs::write(a.dir.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    let deep: PathBuf = (0..15).map(|_| "d".repeat(250)).collect();
    fs::create_dir_all(a.dir.join(&deep)).unwrap();
    fs::write(a.dir.join(&deep).join("x"), b"deep").unwrap();
    std::os::unix::fs::symlink("loop", a.path("loop")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(a.path("pipe")).status().unwrap();
    assert!(made.success());
    let devices = [&a.device, &b.device];
    until("b has all that can be synced", &devices, async || {
        b.tree().len() == 7 && b.dir.join(&deep).join("x").exists()
    })
    .await;
    for name in names {
        let path = b.dir.join(std::ffi::OsStr::from_bytes(name));
        assert_eq!(fs::read(path).unwrap(), name);
    }
    assert_eq!(fs::read(b.dir.join(&deep).join("x")).unwrap(), b"deep");
    until("the rest is told", &devices, async || {
        let skipped = a.status().await.skipped;
        skipped.iter().map(|skipped| skipped.count).sum::<u64>() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_told_and_not_taken_for_gone() {
    if rustix::process::geteuid().is_root() {
        // Root reads everything: the case does not arise.
        return;
    }
    let (a, b) = two().await;
    a.write("secret/1", b"1");
    a.write("open", b"2");
    equal(&a, &b, 2).await;
    fs::set_permissions(a.path("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    a.write("later", b"3");
    until("b has what came later", &[&a.device, &b.device], async || b.read("later").is_some())
        .await;
    assert!(b.path("secret/1").exists());
    fs::set_permissions(a.path("secret"), fs::Permissions::from_mode(0o700)).unwrap();
    equal(&a, &b, 3).await;
}
