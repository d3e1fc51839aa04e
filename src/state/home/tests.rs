//! What a home refuses, and what it leaves behind.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;

use super::*;

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("home");
    (dir, path)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn refusal(path: &Path) -> String {
    Home::open(Some(path.to_owned())).unwrap_err().to_string()
}

#[test]
fn a_fresh_home_is_readable_by_its_owner_only() {
    let (_dir, path) = fresh();
    let home = Home::open(Some(path.clone())).unwrap();
    for folder in [path, home.store_dir(), home.partials_dir()] {
        assert_eq!(mode(&folder), FOLDER_MODE, "{}", folder.display());
    }
}

#[test]
fn a_folder_open_to_others_is_refused_with_the_command_that_mends_it() {
    let (_dir, path) = fresh();
    let home = Home::open(Some(path.clone())).unwrap();
    for folder in [path.clone(), home.store_dir()] {
        for bad in [0o777, 0o750, 0o701] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(bad)).unwrap();
            let said = refusal(&path);
            assert!(said.contains(&format!("{bad:04o}")), "{said}");
            assert!(said.contains("chmod 700"), "{said}");
            assert_eq!(mode(&folder), bad, "nothing is repaired silently");
            assert!(Home::find(Some(path.clone())).is_err());
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn a_link_or_a_file_in_place_of_the_folder_is_refused() {
    let (dir, path) = fresh();
    let real = dir.path().join("real");
    Home::open(Some(real.clone())).unwrap();
    symlink(&real, &path).unwrap();
    assert!(refusal(&path).contains("symbolic link"));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert!(Home::open(Some(path)).is_err());
}

#[test]
fn a_folder_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (_dir, path) = fresh();
    Home::open(Some(path.clone())).unwrap();
    std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
    assert!(refusal(&path).contains("belongs to user 12345"));
}

#[test]
fn client_commands_create_nothing() {
    let (_dir, path) = fresh();
    assert!(Home::find(Some(path.clone())).unwrap().is_none());
    assert!(!path.exists());
}

#[test]
fn without_a_given_folder_the_xdg_folders_are_used() {
    let locate = |set: &'static [(&'static str, &'static str)]| {
        Home::locate(None, move |name| {
            let value = set.iter().find(|(known, _)| *known == name)?.1;
            Some(OsString::from(value))
        })
    };
    let home = locate(&[("HOME", "/h"), ("XDG_DATA_HOME", "relative")]).unwrap();
    assert_eq!(home.state, Path::new("/h/.local/state/can-sync"));
    assert_eq!(home.data, Path::new("/h/.local/share/can-sync"));
    let home = locate(&[("XDG_STATE_HOME", "/s"), ("XDG_DATA_HOME", "/d")]).unwrap();
    assert_eq!(home.key_path(), Path::new("/s/can-sync/key"));
    assert_eq!(home.partials_dir(), Path::new("/d/can-sync/partials"));
    assert!(locate(&[]).unwrap_err().to_string().contains("--home"));
}

#[test]
fn a_second_agent_on_the_same_home_is_refused_and_told_which_process_has_it() {
    let (_dir, path) = fresh();
    let home = Home::open(Some(path)).unwrap();
    let lock = home.lock().unwrap();
    let said = home.lock().unwrap_err().to_string();
    assert!(said.contains(&std::process::id().to_string()), "{said}");
    drop(lock);
    home.lock().unwrap();
}

#[test]
fn a_secret_file_is_never_replaced() {
    let (_dir, path) = fresh();
    let home = Home::open(Some(path)).unwrap();
    let secret = home.key_path();
    write_secret(&secret, b"first").unwrap();
    assert!(write_secret(&secret, b"second").is_err());
    assert_eq!(read_secret(&secret).unwrap().unwrap(), b"first");
    assert_eq!(mode(&secret), FILE_MODE);
}

#[test]
fn the_leftovers_of_a_killed_writer_are_cleared_by_the_next_agent() {
    let (_dir, path) = fresh();
    let home = Home::open(Some(path.clone())).unwrap();
    let leftover = path.join(format!("{UNFINISHED_PREFIX}x"));
    fs::write(&leftover, "half a sec").unwrap();
    let _lock = home.lock().unwrap();
    assert!(!leftover.exists());
}

#[test]
fn the_token_outlives_restarts_and_a_damaged_one_is_named() {
    let (_dir, path) = fresh();
    let home = Home::open(Some(path)).unwrap();
    let lock = home.lock().unwrap();
    let token = home.load_or_create_token(&lock).unwrap();
    assert_eq!(token.len(), TOKEN_CHARS);
    assert_eq!(home.load_or_create_token(&lock).unwrap(), token);
    fs::write(home.api_token_path(), "").unwrap();
    let said = home.load_or_create_token(&lock).unwrap_err().to_string();
    assert!(said.contains("api-token"), "{said}");
    fs::set_permissions(home.api_token_path(), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(home.token().unwrap_err().to_string().contains("chmod 600"));
}

#[test]
fn the_api_address_is_there_while_the_agent_runs() {
    let (_dir, path) = fresh();
    let home = Home::open(Some(path)).unwrap();
    let lock = home.lock().unwrap();
    assert_eq!(home.api_address().unwrap(), None);
    for pid in [1, 2] {
        let api = "http://127.0.0.1:5757".to_owned();
        let address = ApiAddress { api, pid, socket: Some("api-socket".into()) };
        home.write_api_address(&lock, &address).unwrap();
        assert_eq!(home.api_address().unwrap(), Some(address));
    }
    home.remove_api_address(&lock).unwrap();
    home.remove_api_address(&lock).unwrap();
    assert_eq!(home.api_address().unwrap(), None);
}
