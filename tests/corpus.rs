//! Runs every file of `fuzz/corpus`, and random mutations of it, through its target: what `cargo
//! fuzz` does for hours, for a moment and without a nightly compiler.
//!
//! `PROPTEST_CASES=n` runs more. `WRITE_CORPUS=1` writes the seeds again after a message has
//! changed. Inputs found by a fuzzer are added beside them and stay.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;

#[path = "corpus/seeds.rs"]
mod seeds;
#[path = "corpus/targets.rs"]
mod targets;

use seeds::{names, seeds};
use targets::TARGETS;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// The files of a target, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(folder(target)).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read(path).unwrap())
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
}

#[test]
fn the_corpus_has_every_message_as_it_is_written_today() {
    let seeds = seeds();
    assert_eq!(names(&seeds).len(), seeds.len(), "two seeds of one name");
    for (target, name, bytes) in seeds {
        let file = folder(target).join(&name);
        if std::env::var_os("WRITE_CORPUS").is_some() {
            std::fs::create_dir_all(folder(target)).unwrap();
            std::fs::write(&file, &bytes).unwrap();
        }
        let found = std::fs::read(&file).ok();
        let how = "has changed: if it was meant to, run this test with WRITE_CORPUS=1";
        assert_eq!(found, Some(bytes), "{target}/{name} {how}");
    }
}

#[test]
fn each_target_has_its_fuzzer_and_each_fuzzer_its_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for (target, _) in TARGETS {
        let path = format!("fuzz_targets/{target}.rs");
        let fuzzer = std::fs::read_to_string(root.join(&path)).unwrap();
        assert!(fuzzer.contains(&format!("targets::{target}(bytes);")), "{path}");
        let entry = format!("name = \"{target}\"\npath = \"{path}\"");
        assert!(manifest.contains(&entry), "{path} is not in fuzz/Cargo.toml");
    }
    let fuzzers = std::fs::read_dir(root.join("fuzz_targets")).unwrap().count();
    assert_eq!(fuzzers, TARGETS.len());
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}

#[test]
fn each_file_of_the_corpus_is_read_or_refused_as_its_name_says() {
    for (target, run) in TARGETS {
        let files = corpus(target);
        assert!(files.len() > 1, "{target} has no corpus");
        for (name, bytes) in files {
            let refused = name.ends_with("-cut") || name.ends_with("-bad");
            let read = run(&bytes);
            let is_seed = name.contains('-') || !name.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(!is_seed || read != refused, "{target}/{name}: read: {read}");
        }
    }
}

/// A change of a corpus file.
#[derive(Debug, Clone)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index, u8),
    /// Replaces the rest by that of another file.
    Splice(prop::sample::Index, prop::sample::Index, prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    use prop::sample::Index;
    let place = any::<Index>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, to)| Mutation::Set(at, to)),
        (place(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, 1 << bit)),
        place().prop_map(Mutation::Cut),
        (place(), prop::collection::vec(any::<u8>(), 1..6))
            .prop_map(|(at, b)| Mutation::Insert(at, b)),
        (place(), place()).prop_map(|(from, to)| Mutation::Remove(from, to)),
        (place(), place(), 1..5_u8).prop_map(|(from, to, n)| Mutation::Repeat(from, to, n)),
        (place(), place(), place()).prop_map(|(at, file, from)| Mutation::Splice(at, file, from)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation, files: &[(String, Vec<u8>)]) {
    let place = |index: &prop::sample::Index, bytes: &[u8]| index.index(bytes.len() + 1);
    let range = |from, to, bytes: &[u8]| {
        let (a, b) = (place(from, bytes), place(to, bytes));
        a.min(b)..a.max(b)
    };
    match mutation {
        Mutation::Set(at, to) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] = *to;
        }
        Mutation::Flip(at, bit) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] ^= bit;
        }
        Mutation::Set(..) | Mutation::Flip(..) => {}
        Mutation::Cut(at) => bytes.truncate(place(at, bytes)),
        Mutation::Insert(at, more) => {
            let at = place(at, bytes);
            bytes.splice(at..at, more.iter().copied());
        }
        Mutation::Remove(from, to) => drop(bytes.drain(range(from, to, bytes))),
        Mutation::Repeat(from, to, times) => {
            let range = range(from, to, bytes);
            let more = bytes[range.clone()].repeat((*times).into());
            bytes.splice(range.end..range.end, more);
        }
        Mutation::Splice(at, file, from) => {
            let (_, other) = &files[file.index(files.len())];
            bytes.truncate(place(at, bytes));
            bytes.extend_from_slice(&other[place(from, other)..]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_becomes_of_a_file_of_the_corpus_is_read_or_refused(
        file in any::<prop::sample::Index>(),
        mutations in prop::collection::vec(mutation(), 1..5),
    ) {
        for (target, run) in TARGETS {
            let files = corpus(target);
            let mut bytes = files[file.index(files.len())].1.clone();
            for mutation in &mutations {
                mutate(&mut bytes, mutation, &files);
            }
            run(&bytes);
        }
    }
}
