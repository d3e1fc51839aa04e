//! Binding a directory: all or nothing, by one device, and until the group is left.

use can_sync::folders::disk::MARKER;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_another_device_has_bound_is_refused_and_its_marker_stays() {
    let (a, b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    a.write("one", b"1");
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    until("b knows it", &[&a.device, &b.device], async || {
        b.device.handle().folders().find(NAME).await.is_ok()
    })
    .await;
    let marker = a.read(MARKER);
    let same = BindRequest { name: None, ..request(&a.dir) };
    let refused = b.device.handle().folders().join(NAME, same).await.unwrap_err();
    assert!(refused.to_string().contains("is also bound by the device"), "{refused}");
    assert!(b.device.handle().folders().list().await.unwrap().folders[0].binding.is_none());
    assert_eq!(a.read(MARKER), marker);

    // An agent whose directory another device took over stops, and leaves the marker alone.
    let other = String::from_utf8(marker.unwrap()).unwrap();
    let other = other.replace(&a.device.node_id.to_string(), &b.device.node_id.to_string());
    let new = a.dir.with_extension("marker");
    fs::write(&new, &other).unwrap();
    fs::rename(new, a.path(MARKER)).unwrap();
    until("a stops", &[&a.device], async || a.state().await == BindingState::Stopped).await;
    assert!(a.problems().await.contains("bound by the device"), "{}", a.problems().await);
    a.device.handle().folders().remove(NAME).await.unwrap();
    assert_eq!(a.read(MARKER).unwrap(), other.as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_device_tells_which_directory_it_has_bound_until_it_is_unbound() {
    let (a, b) = two().await;
    let devices = [&a.device, &b.device];
    let elsewhere = async |of: &Bound| of.status().await.folder.elsewhere;
    until("each knows the directory of the other", &devices, async || {
        elsewhere(&a).await.len() == 1 && elsewhere(&b).await.len() == 1
    })
    .await;
    let [there] = <[_; 1]>::try_from(elsewhere(&b).await).unwrap();
    assert_eq!(there.device, a.device.node_id);
    assert_eq!(there.device_name, a.device.status().device.name);
    assert_eq!((there.dir.as_str(), there.mode.as_str()), (a.dir.to_str().unwrap(), "two-way"));
    a.device.handle().folders().remove(NAME).await.unwrap();
    until("b knows that a has none", &devices, async || elsewhere(&b).await.is_empty()).await;
    assert_eq!(elsewhere(&a).await.len(), 1, "a knows where the folder still is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_of_joining_counts_what_comes_and_what_meets_and_makes_nothing() {
    let (a, b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    for name in ["one", "two", "deep/three"] {
        a.write(name, name.as_bytes());
    }
    b.write("two", b"another two");
    b.write("own", b"own");
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    until("b knows all of it", &[&a.device, &b.device], async || {
        let history = b.device.handle().folders();
        history.history(NAME, "deep/three").await.is_ok()
            && history.history(NAME, "one").await.is_ok()
            && history.history(NAME, "two").await.is_ok()
    })
    .await;
    let folders = b.device.handle().folders();
    let trial = BindRequest { name: None, dry_run: true, ..request(&b.dir) };
    let bound = folders.join(NAME, trial.clone()).await.unwrap();
    assert_eq!((bound.files, bound.arriving_files, bound.in_both), (2, 2, 1));
    assert_eq!(bound.arriving_bytes, 3 + 10);
    let new = b.dir.join("to be made");
    let trial = BindRequest { dir: new.to_str().unwrap().to_owned(), ..trial };
    let bound = folders.join(NAME, trial).await.unwrap();
    assert_eq!((bound.files, bound.arriving_files, bound.in_both), (0, 3, 0));
    assert!(!new.exists() && !b.path(MARKER).exists());
    assert!(folders.list().await.unwrap().folders[0].binding.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_whose_making_a_crash_cut_short_is_gone_after_the_next_start() {
    let mut a = Bound::new().await;
    a.write("one", b"1");
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    let id = a.status().await.folder.id;
    a.device.down().await;
    // As it was before the folder was written to the journal.
    let unwritten = "UPDATE bindings SET begun = 1, folder = x'00112233445566778899aabbccddeeff'";
    assert_eq!(in_folders_db(&a.device, unwritten), 1);
    let marker = String::from_utf8(a.read(MARKER).unwrap()).unwrap();
    let unwritten = marker.replace(&id.to_string(), "00112233445566778899aabbccddeeff");
    a.write(MARKER, unwritten.as_bytes());
    a.device.up().await;
    until("it is taken back", &[&a.device], async || {
        let folders = a.device.handle().folders().list().await.unwrap().folders;
        !a.path(MARKER).exists() && folders.iter().all(|folder| folder.binding.is_none())
    })
    .await;
    assert_eq!(a.read("one").unwrap(), b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_that_a_crash_cut_short_after_its_folder_was_made_is_finished() {
    let mut a = Bound::new().await;
    a.write("one", b"1");
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    a.device.down().await;
    assert_eq!(in_folders_db(&a.device, "UPDATE bindings SET begun = 1"), 1);
    fs::remove_file(a.path(MARKER)).unwrap();
    a.device.up().await;
    until("it is synced", &[&a.device], async || {
        a.state().await == BindingState::UpToDate && a.status().await.files == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_leaving_the_group_its_folders_stop_and_can_be_removed() {
    let (a, b) = two().await;
    a.write("one", b"1");
    equal(&a, &b, 1).await;
    let id = b.status().await.folder.id.to_string();
    b.device.handle().leave().await.unwrap();
    let folders = b.device.handle().folders();
    b.write("secret", b"not for the next group");
    let problems = async || {
        let list = folders.list().await.unwrap().folders;
        let found = list.into_iter().find(|folder| folder.id.to_string() == id);
        found.and_then(|folder| folder.binding).map(|binding| binding.problems.join("\n"))
    };
    until("b says why it stops", &[&b.device], async || {
        problems().await.is_some_and(|text| text.contains("does not have the folder"))
    })
    .await;
    folders.remove(&id).await.unwrap();
    assert!(problems().await.is_none());
    assert_eq!(b.read("one").unwrap(), b"1");
    assert!(!b.path(MARKER).exists());
    assert!(a.read("secret").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ignore_rules_that_change_while_the_agent_is_stopped_bring_what_was_passed_over() {
    let (a, mut b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    // The rules ignore themselves, so that they hold on this device alone.
    b.write(".cansyncignore", b".cansyncignore\n*.log\n");
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    join(&b).await;
    a.write("x.log", b"log");
    a.write("y.txt", b"text");
    let devices = [&a.device, &b.device];
    until("b has what it does not ignore", &devices, async || {
        b.read("y.txt").is_some() && b.state().await == BindingState::UpToDate
    })
    .await;
    assert!(b.read("x.log").is_none());
    b.device.down().await;
    b.write(".cansyncignore", b".cansyncignore\n");
    b.device.up().await;
    until("b has the rest", &[&a.device, &b.device], async || b.read("x.log").is_some()).await;
}
