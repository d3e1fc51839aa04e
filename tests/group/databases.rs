//! Databases of a home restored from a backup, each alone and all together. Whatever was restored,
//! all devices end with every asset that any of them still has.

use std::process::Command;

use super::*;

/// The parts that are restored, each with the files beside it.
const INDEX: &str = "index.db";
const JOURNAL: &str = "journal.db";
const STORE: &str = "store";

fn run(program: &str, args: &[&std::path::Path]) {
    let flag = if program == "cp" { "-a" } else { "-rf" };
    assert!(Command::new(program).arg(flag).args(args).status().unwrap().success());
}

/// Restores `parts` of the home from its backup. With `is_same_file` databases are overwritten in
/// place, as a snapshot does, so that the file system does not show that they are older.
fn put_back(home: &std::path::Path, backup: &std::path::Path, parts: &[&str], is_same_file: bool) {
    for part in parts {
        for name in ["", "-wal", "-shm"].map(|suffix| format!("{part}{suffix}")) {
            let (from, to) = (backup.join(&name), home.join(&name));
            if from.is_file() && is_same_file {
                std::fs::copy(&from, &to).unwrap();
                continue;
            }
            run("rm", &[&to]);
            if from.exists() {
                run("cp", &[&from, &to]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_databases_are_put_back_from_a_backup_every_asset_reaches_everybody() {
    let cases: [(&[&str], bool); 8] = [
        (&[INDEX], false),
        (&[JOURNAL], false),
        (&[STORE], false),
        (&[INDEX, JOURNAL], false),
        (&[INDEX, STORE], false),
        (&[JOURNAL, STORE], false),
        (&[INDEX, JOURNAL, STORE], false),
        (&[INDEX], true),
    ];
    for (parts, is_same_file) in cases {
        let [a, mut c] = group().await;
        let sizes = [100, 40_000, 400_000];
        let mut all = common::group::hashes_of(&c.add(sizes).await);
        all_in_sync(&[&a, &c], 1).await;
        c.down().await;
        let home = c.home.index_db_path().parent().unwrap().to_owned();
        let backup = tempfile::tempdir().unwrap();
        let copy = backup.path().join("home");
        run("cp", &[&home, &copy]);
        c.up().await;
        all.extend(common::group::hashes_of(&c.add(sizes).await));
        until("all is here before anything is lost", &[&a, &c], async || a.hashes().await == all)
            .await;
        c.down().await;
        put_back(&home, &copy, parts, is_same_file);
        c.up().await;
        all.extend(common::group::hashes_of(&c.add(sizes).await));
        all.extend(common::group::hashes_of(&a.add(sizes).await));
        until(&format!("all is here after {parts:?} went back"), &[&a, &c], async || {
            a.hashes().await == all && c.hashes().await == all
        })
        .await;
        all_in_sync(&[&a, &c], 1).await;
        c.verify().await;
    }
}
