//! What was replaced is kept until nobody writes to it, also across a crash.

use std::fs::OpenOptions;
use std::io::Write as _;

use can_sync::folders::disk::{Place, Placement, Root, keep};

use crate::common::{Bound, MARK, content, done, path};

#[test]
fn replaced_content_is_removed_when_it_was_quiet_for_ten_seconds() {
    let bound = Bound::new();
    let seen = bound.write("file", "old");
    done(bound.place("file", "new", Some(seen)));
    let removed = bound.write("removed", "gone");
    done(bound.place_other("removed", Place::Nothing, Some(removed)));
    assert_eq!(bound.kept().len(), 2);
    assert_eq!(bound.root.settle(5), []);
    assert_eq!(bound.root.settle(5 + keep::KEPT_MS - 1), []);
    assert_eq!(bound.kept().len(), 2);
    assert_eq!(bound.root.settle(5 + keep::KEPT_MS), []);
    assert_eq!(bound.kept(), Vec::<String>::new());
}

#[test]
fn an_editor_that_holds_the_old_file_open_loses_nothing() {
    let bound = Bound::new();
    let seen = bound.write("file", "old");
    let mut editor = OpenOptions::new().append(true).open(bound.dir.join("file")).unwrap();
    done(bound.place("file", "new", Some(seen)));
    let mut now_ms = 0;
    let mut settle = |advance_ms| {
        now_ms += advance_ms;
        bound.root.settle(now_ms)
    };
    assert_eq!(settle(0), []);
    // It does not write for an hour.
    for _ in 0..360 {
        assert_eq!(settle(keep::KEPT_MS), []);
        if !cfg!(target_os = "linux") {
            break;
        }
    }
    if !cfg!(target_os = "linux") {
        return;
    }
    assert_eq!(bound.kept().len(), 1, "it is kept as long as it is open");
    for edit in ["first", "second"] {
        editor.write_all(edit.as_bytes()).unwrap();
        assert_eq!(settle(keep::QUIET_MS), [], "the editor may be in the middle of a save");
        let edits = settle(keep::QUIET_MS);
        assert_eq!(edits.len(), 1);
        assert_eq!(edits[0].key, path("file").key());
        let text = String::from_utf8(content(&bound.root, &edits[0].kept)).unwrap();
        assert!(text.ends_with(edit), "{text}");
        bound.root.release(edits[0].clone());
    }
    drop(editor);
    assert_eq!(settle(0), []);
    assert_eq!(settle(keep::KEPT_MS), []);
    assert_eq!(bound.kept(), Vec::<String>::new());
    assert_eq!(bound.read("file"), "new");
}

#[test]
fn an_edit_that_arrives_between_reading_and_releasing_is_returned_again() {
    let bound = Bound::new();
    let seen = bound.write("file", "old");
    let mut editor = OpenOptions::new().append(true).open(bound.dir.join("file")).unwrap();
    done(bound.place("file", "new", Some(seen)));
    editor.write_all(b" edit").unwrap();
    assert_eq!(bound.root.settle(0), []);
    let edits = bound.root.settle(keep::QUIET_MS);
    assert_eq!(content(&bound.root, &edits[0].kept), b"old edit");
    editor.write_all(b" more").unwrap();
    bound.root.release(edits[0].clone());
    assert_eq!(bound.root.settle(2 * keep::QUIET_MS), []);
    let edits = bound.root.settle(3 * keep::QUIET_MS);
    assert_eq!(content(&bound.root, &edits[0].kept), b"old edit more");
}

#[test]
fn more_than_the_most_kept_files_make_room_for_each_other() {
    let bound = Bound::quick();
    let paths: Vec<_> = (0..keep::KEPT_MAX + 10).map(|n| path(&n.to_string())).collect();
    let placements = paths.iter().map(|path| {
        let expected = Some(bound.write(&path.to_string(), "content"));
        Placement { path, what: Place::Nothing, expected }
    });
    for outcome in bound.root.place_all(placements.collect()) {
        done(outcome);
    }
    assert_eq!(bound.kept().len(), keep::KEPT_MAX);
}

#[test]
fn what_a_killed_run_replaced_is_reported_and_its_unfinished_files_are_removed() {
    let bound = Bound::new();
    let seen = bound.write("kept", "kept");
    done(bound.place_other("kept", Place::Nothing, Some(seen)));
    let key = data_encoding::HEXLOWER.encode(&path("sub/file").key().0);
    let name = |last: &str| format!("sub/.can-sync-tmp-00000000000000ff-{key}-{last}");
    bound.write(&name("new"), "unfinished");
    bound.write(&name("away-1"), "taken away");
    bound.write(&name("1"), "replaced");
    let complete = bound.write("complete", "complete").inode;
    let complete_name = name(&format!("{complete:x}"));
    std::fs::rename(bound.dir.join("complete"), bound.dir.join(&complete_name)).unwrap();
    assert_eq!(bound.leftovers().len(), 2, "what this run keeps is no leftover");

    let root = Root::open(&bound.dir, MARK).unwrap();
    let next = Bound { root, ..bound };
    let mut leftovers: Vec<_> = next
        .leftovers()
        .into_iter()
        .map(|left| (String::from_utf8(content(&next.root, &left.kept)).unwrap(), left))
        .collect();
    leftovers.sort_by(|one, other| one.0.cmp(&other.0));
    let texts: Vec<_> = leftovers.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(texts, ["kept", "replaced", "taken away"]);
    assert_eq!(leftovers[0].1.key, path("kept").key());
    assert_eq!(leftovers[1].1.key, path("sub/file").key());
    assert!(!next.dir.join(name("new")).exists() && !next.dir.join(&complete_name).exists());
    for (_, leftover) in leftovers {
        next.root.release(leftover);
    }
    assert_eq!(next.root.settle(0), []);
    assert_eq!(next.root.settle(keep::KEPT_MS), []);
    assert_eq!(next.kept(), Vec::<String>::new());
    assert_eq!(next.own_names("sub"), Vec::<String>::new());
}

#[test]
fn a_directory_that_a_killed_run_took_from_its_name_is_shown_to_the_user() {
    let bound = Bound::new();
    let key = data_encoding::HEXLOWER.encode(&path("file").key().0);
    bound.write(&format!(".can-sync-kept/00000000000000ff-{key}-1/mine"), "mine");
    bound.write(&format!("sub/.can-sync-tmp-00000000000000ff-{key}-1/mine"), "mine too");
    assert_eq!(bound.leftovers(), []);
    assert_eq!(bound.listed(), ["recovered (kept 1)/mine", "recovered (kept 2)/mine", "sub/"]);
}
