//! Hints about changes.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;

use can_sync::folders::disk::{Hint, Hints, Rules, Watch, watch};
use tokio::time::timeout;

use crate::common::{Bound, path};

const WAIT: Duration = Duration::from_secs(20);

fn watched(bound: &Bound) -> (Watch, Hints) {
    let (watch, hints) = Watch::start(&bound.root).unwrap();
    scan_below(bound, None, &watch);
    (watch, hints)
}

fn scan_below(bound: &Bound, below: Option<&str>, watch: &Watch) -> BTreeSet<String> {
    let rules = Rules::load(&bound.root).unwrap();
    let mut found = BTreeSet::new();
    let mut each = |scanned| {
        if let can_sync::folders::disk::Scanned::Entry(path, _) = scanned {
            found.insert(path.to_string());
        }
        ControlFlow::Continue(())
    };
    let below = below.map(path);
    bound.root.scan(below.as_ref(), &rules, Some(watch), &mut each).unwrap();
    found
}

async fn wait_for(hints: &mut Hints, wanted: impl Fn(&Hint) -> bool) {
    let found = async { while !wanted(&hints.next().await.unwrap()) {} };
    timeout(WAIT, found).await.expect("the hint comes");
}

fn says(hint: &Hint, at: &str, final_only: bool) -> bool {
    matches!(hint, Hint::Path { path: found, is_final } if *found == path(at) && (*is_final || !final_only))
}

#[tokio::test]
async fn a_save_in_place_or_by_rename_is_hinted_as_complete() {
    let bound = Bound::new();
    std::fs::create_dir(bound.dir.join("sub")).unwrap();
    let (_watch, mut hints) = watched(&bound);
    bound.write("sub/file", "1");
    wait_for(&mut hints, |hint| says(hint, "sub/file", true)).await;
    let saved = bound.outside().join("saved");
    std::fs::write(&saved, "2").unwrap();
    std::fs::rename(&saved, bound.dir.join("other")).unwrap();
    wait_for(&mut hints, |hint| says(hint, "other", true)).await;
    std::fs::remove_file(bound.dir.join("other")).unwrap();
    wait_for(&mut hints, |hint| says(hint, "other", false)).await;
    let seen = bound.seen("sub/file");
    crate::common::done(bound.place("sub/file", "placed", seen));
    wait_for(&mut hints, |hint| says(hint, "sub/file", false)).await;
}

#[tokio::test]
async fn nothing_is_missed_in_a_directory_that_appears() {
    let bound = Bound::new();
    let (watch, mut hints) = watched(&bound);
    let tree = bound.outside().join("tree");
    for at in ["a/b", "c"] {
        std::fs::create_dir_all(tree.join(at)).unwrap();
    }
    std::fs::write(tree.join("a/b/early"), "").unwrap();
    std::fs::rename(&tree, bound.dir.join("tree")).unwrap();
    wait_for(&mut hints, |hint| *hint == Hint::Below(path("tree"))).await;
    assert_eq!(scan_below(&bound, Some("tree"), &watch), BTreeSet::from(["tree/a/b/early".into()]));
    bound.write("tree/a/b/late", "");
    wait_for(&mut hints, |hint| says(hint, "tree/a/b/late", true)).await;
    std::fs::create_dir(bound.dir.join("tree/c/new")).unwrap();
    wait_for(&mut hints, |hint| *hint == Hint::Below(path("tree/c/new"))).await;
    std::fs::rename(bound.dir.join("tree"), bound.dir.join("moved")).unwrap();
    wait_for(&mut hints, |hint| *hint == Hint::Below(path("moved"))).await;
    scan_below(&bound, Some("moved"), &watch);
    bound.write("moved/a/b/later", "");
    wait_for(&mut hints, |hint| says(hint, "moved/a/b/later", true)).await;
}

#[tokio::test]
async fn more_hints_than_fit_become_one_overflow() {
    let bound = Bound::quick();
    let (_watch, mut hints) = watched(&bound);
    for n in 0..watch::HINTS_MAX {
        std::fs::write(bound.dir.join(format!("{}", n % 100)), "1").unwrap();
    }
    // At least two hints for each write: none is taken before the last one.
    wait_for(&mut hints, |hint| *hint == Hint::Overflow).await;
    std::fs::write(bound.dir.join("last"), "1").unwrap();
    wait_for(&mut hints, |hint| says(hint, "last", true) || *hint == Hint::Overflow).await;
}

#[tokio::test]
async fn the_loss_of_the_marker_or_of_the_directory_asks_for_a_check() {
    let bound = Bound::new();
    let (watch, mut hints) = watched(&bound);
    std::fs::remove_file(bound.dir.join(can_sync::folders::disk::MARKER)).unwrap();
    wait_for(&mut hints, |hint| *hint == Hint::Overflow).await;
    std::fs::rename(&bound.dir, bound.outside().join("moved")).unwrap();
    wait_for(&mut hints, |hint| *hint == Hint::Overflow).await;
    drop(watch);
    timeout(WAIT, async { while hints.next().await.is_some() {} }).await.expect("the hints end");
}

#[tokio::test]
async fn our_own_files_and_ignored_directories_give_no_hints() {
    let bound = Bound::new();
    bound.write(".cansyncignore", "target/\n");
    bound.write("target/debug/file", "1");
    let (_watch, mut hints) = watched(&bound);
    bound.write("target/debug/other", "2");
    bound.write(".can-sync-other", "3");
    let seen = crate::common::done(bound.place("file", "4", None));
    crate::common::done(bound.place("file", "5", seen));
    bound.write("end", "6");
    let mut hinted = BTreeSet::new();
    let until_end = async {
        loop {
            match hints.next().await.unwrap() {
                Hint::Path { path, .. } if path.to_string() == "end" => break,
                Hint::Path { path, .. } | Hint::Below(path) => {
                    hinted.insert(path.to_string());
                }
                other => panic!("{other:?}"),
            }
        }
    };
    timeout(WAIT, until_end).await.unwrap();
    assert_eq!(hinted, BTreeSet::from(["file".to_owned()]));
}

/// With a low limit this is run by `too_few_watches_are_reported_once_with_what_to_do`.
#[tokio::test]
async fn with_few_watches_everything_is_still_listed() {
    let bound = Bound::new();
    for n in 0..20 {
        bound.write(&format!("{n}/file"), "");
    }
    let (watch, mut hints) = Watch::start(&bound.root).unwrap();
    assert_eq!(scan_below(&bound, None, &watch).len(), 20);
    assert_eq!(scan_below(&bound, None, &watch).len(), 20);
    bound.write("19/end", "");
    std::fs::remove_file(bound.dir.join(can_sync::folders::disk::MARKER)).unwrap();
    let mut failures = Vec::new();
    let until_end = async {
        loop {
            match hints.next().await.unwrap() {
                Hint::Failed(text) => failures.push(text),
                Hint::Overflow => break,
                _ => {}
            }
        }
    };
    timeout(WAIT, until_end).await.expect("the top is watched");
    let is_limited = std::env::var_os("FEW_WATCHES").is_some();
    assert_eq!(failures.len(), usize::from(is_limited), "{failures:?}");
    assert!(failures.iter().all(|text| text.contains("sysctl -w fs.inotify.max_user_watches")));
}
