//! The device's identity: one secret key, made once and kept for life.
//!
//! A damaged key is never replaced: the group knows this device by it, so a new key would silently
//! turn the device into a stranger. A missing key beside existing state is not replaced either. A
//! key is given up only when the user requests it, with the journal that it signed; because a
//! running agent uses both, the next start does this.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use iroh::{PublicKey, SecretKey, Signature};

use crate::core::ids::NodeId;
use crate::state::home::{Home, Lock, read_secret, write_secret};

/// The device's key pair.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The secret key. It signs the QUIC handshakes. Its `Debug` shows no bytes of it.
    pub secret_key: SecretKey,
    /// The public key.
    pub node_id: NodeId,
}

impl Identity {
    /// Reads the key, or makes one if this home has neither key nor state. A new key is durable
    /// before it is returned.
    pub fn load_or_create(home: &Home, _lock: &Lock) -> Result<Self> {
        start_over_if_asked(home)?;
        let path = home.key_path();
        if let Some(text) = read_secret(&path)? {
            return Self::from_text(&text).with_context(|| {
                format!(
                    "{} is damaged: restore it from a backup, or, {}",
                    path.display(),
                    how_to_start_over(home)
                )
            });
        }
        let state = home.journal_db_path();
        if state.symlink_metadata().is_ok() {
            bail!(
                "the key {} is missing although {} is there: put the key back, or, {}",
                path.display(),
                state.display(),
                how_to_start_over(home)
            );
        }
        let identity = Self::from_bytes(&rand::random());
        let text = data_encoding::HEXLOWER.encode(&identity.secret_key.to_bytes());
        write_secret(&path, format!("{text}\n").as_bytes())?;
        Ok(identity)
    }

    /// Requests that the next start makes this home a new device with another key, in a group of
    /// its own.
    pub fn ask_to_start_over(home: &Home) -> Result<()> {
        let path = home.start_over_path();
        if path.symlink_metadata().is_ok() {
            return Ok(());
        }
        write_secret(&path, b"")
    }

    /// Signs with the key. Each message starts with its purpose, so that no signature can be used
    /// for another one.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.secret_key.sign(message).to_bytes()
    }

    /// The key from which the secrets of hooks are derived. The device's secret key cannot be
    /// computed from it.
    pub fn hook_key(&self) -> [u8; KEY_BYTES] {
        blake3::derive_key("can-sync secrets of hooks v1", &self.secret_key.to_bytes())
    }

    /// The identity of a given key. Only [`Identity::load_or_create`] saves keys.
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Self {
        let secret_key = SecretKey::from_bytes(bytes);
        let node_id = NodeId(*secret_key.public().as_bytes());
        Self { secret_key, node_id }
    }

    fn from_text(text: &[u8]) -> Result<Self> {
        ensure!(
            text.len() == KEY_TEXT_BYTES && text.ends_with(b"\n"),
            "expected {KEY_TEXT_BYTES} bytes (64 hex characters and a newline), found {}",
            text.len()
        );
        let bytes = data_encoding::HEXLOWER
            .decode(&text[..KEY_TEXT_BYTES - 1])
            .ok()
            .and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok())
            .context("expected lower-case hex characters, found others")?;
        Ok(Self::from_bytes(&bytes))
    }
}

/// Whether `device` signed `message`. Verification is strict and one signature at a time: batch
/// verification accepts some signatures that this refuses, and devices must not disagree.
pub fn verify_signature(
    device: &NodeId,
    message: &[u8],
    signature: &[u8; SIGNATURE_BYTES],
) -> bool {
    PublicKey::from_bytes(&device.0)
        .is_ok_and(|key| key.verify(message, &Signature::from_bytes(signature)).is_ok())
}

/// The length of a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// The request is removed last, so that the start after an interrupted one does the rest.
fn start_over_if_asked(home: &Home) -> Result<()> {
    let asked = home.start_over_path();
    if asked.symlink_metadata().is_err() {
        return Ok(());
    }
    let journal = home.journal_db_path();
    let beside = |suffix| journal.with_file_name(format!("journal.db{suffix}"));
    for path in [journal.clone(), beside("-wal"), beside("-shm"), home.key_path(), asked] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
        sync_folder(&path)?;
    }
    tracing::warn!("as requested, this home is a new device now");
    Ok(())
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().context("a file of a home stands in a folder")?;
    let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("syncing {}", folder.display()))
}

fn how_to_start_over(home: &Home) -> String {
    format!(
        "to start over as a new device that must be paired again, move {0} and {1}, {1}-wal and \
         {1}-shm (those that are there) away",
        home.key_path().display(),
        home.journal_db_path().display()
    )
}

const KEY_BYTES: usize = 32;
const KEY_TEXT_BYTES: usize = 2 * KEY_BYTES + 1;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;
    use crate::state::journal::Journal;

    fn home(dir: &Path) -> Home {
        Home::open(Some(dir.join("home"))).unwrap()
    }

    fn load(home: &Home) -> Result<Identity> {
        Identity::load_or_create(home, &home.lock().unwrap())
    }

    #[test]
    fn the_same_device_comes_back_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        assert_eq!(load(&home).unwrap().node_id, load(&home).unwrap().node_id);
    }

    #[test]
    fn a_bad_key_file_is_refused_and_left_as_it_is() {
        let good = format!("{}\n", "5a".repeat(32));
        let contents: [(&str, String); 8] = [
            ("empty", String::new()),
            ("one newline", "\n".into()),
            ("31 bytes", format!("{}\n", "5a".repeat(31))),
            ("33 bytes", format!("{}\n", "5a".repeat(33))),
            ("cut", good[..40].into()),
            ("no newline", good[..64].into()),
            ("garbled", good.replacen('5', "x", 1)),
            ("upper case", good.to_uppercase()),
        ];
        for (what, content) in contents {
            let dir = tempfile::tempdir().unwrap();
            let home = home(dir.path());
            write_secret(&home.key_path(), content.as_bytes()).unwrap();
            let said = format!("{:#}", load(&home).unwrap_err());
            assert!(said.contains("key is damaged"), "{what}: {said}");
            assert!(!said.contains("5a5a"), "{what}: shows the key: {said}");
            assert_eq!(fs::read_to_string(home.key_path()).unwrap(), content, "{what}");
        }
    }

    #[test]
    fn a_key_file_that_others_could_reach_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let node_id = load(&home).unwrap().node_id;
        let key = home.key_path();
        for bad in [0o644, 0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&key, fs::Permissions::from_mode(bad)).unwrap();
            let said = load(&home).unwrap_err().to_string();
            assert!(said.contains(&format!("{bad:04o}")), "{said}");
            assert!(said.contains("chmod 600"), "{said}");
        }
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(load(&home).unwrap().node_id, node_id);

        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&key, &elsewhere).unwrap();
        symlink(&elsewhere, &key).unwrap();
        assert!(load(&home).unwrap_err().to_string().contains("symbolic link"));
        fs::remove_file(&key).unwrap();
        symlink(dir.path().join("nothing"), &key).unwrap();
        assert!(load(&home).unwrap_err().to_string().contains("symbolic link"));
        fs::remove_file(&key).unwrap();
        fs::create_dir(&key).unwrap();
        assert!(load(&home).unwrap_err().to_string().contains("not a regular file"));
        fs::remove_dir(&key).unwrap();
        if rustix::process::geteuid().is_root() {
            fs::rename(&elsewhere, &key).unwrap();
            std::os::unix::fs::chown(&key, Some(12_345), None).unwrap();
            assert!(load(&home).unwrap_err().to_string().contains("belongs to user 12345"));
        }
    }

    #[test]
    fn a_missing_key_beside_existing_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let identity = load(&home).unwrap();
        Journal::open(&home.journal_db_path(), &identity, [0; 32]).unwrap();
        fs::remove_file(home.key_path()).unwrap();
        let said = load(&home).unwrap_err().to_string();
        assert!(said.contains("journal.db"), "{said}");
        assert!(!home.key_path().exists());
    }

    #[test]
    fn a_key_with_an_empty_or_missing_journal_is_no_first_start() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        assert!(!home.is_journal_lost(), "a first start");
        let identity = load(&home).unwrap();
        assert!(home.is_journal_lost());
        drop(Journal::open(&home.journal_db_path(), &identity, [0; 32]).unwrap());
        assert!(!home.is_journal_lost());
        fs::write(home.journal_db_path(), b"").unwrap();
        assert!(home.is_journal_lost());
        Identity::ask_to_start_over(&home).unwrap();
        assert!(!home.is_journal_lost(), "it is to be a new device");
    }

    #[test]
    fn a_home_that_starts_over_has_another_key_and_no_journal_wherever_it_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let first = load(&home).unwrap();
        drop(Journal::open(&home.journal_db_path(), &first, [0; 32]).unwrap());
        Identity::ask_to_start_over(&home).unwrap();
        Identity::ask_to_start_over(&home).unwrap();
        // As if an earlier start had come this far.
        fs::remove_file(home.journal_db_path()).unwrap();
        let second = load(&home).unwrap();
        assert_ne!(first.node_id, second.node_id);
        drop(Journal::open(&home.journal_db_path(), &second, [0; 32]).unwrap());
        assert_eq!(load(&home).unwrap().node_id, second.node_id, "once");
    }

    /// Runs as a process of its own, because the umask belongs to the process.
    #[test]
    #[ignore = "a child process of the tests below"]
    fn child_starts() {
        let Ok(path) = std::env::var("CAN_SYNC_TEST_HOME") else {
            return;
        };
        rustix::process::umask(rustix::fs::Mode::empty());
        let home = Home::open(Some(path.into())).unwrap();
        let lock = home.lock().unwrap();
        let identity = Identity::load_or_create(&home, &lock).unwrap();
        home.load_or_create_token(&lock).unwrap();
        Journal::open(&home.journal_db_path(), &identity, [0; 32]).unwrap();
        crate::state::index::Index::open(&home.index_db_path()).unwrap();
    }

    fn child(home: &Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "state::identity::tests::child_starts", "--ignored"])
            .env("CAN_SYNC_TEST_HOME", home)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
        walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.unwrap().into_path()).collect()
    }

    #[test]
    fn an_open_umask_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home");
        let output = child(&path).wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let found = files_below(&path);
        assert!(found.len() >= 7, "{found:?}");
        for path in found {
            let mode = fs::symlink_metadata(&path).unwrap().mode();
            assert_eq!(mode & 0o077, 0, "{} {mode:o}", path.display());
        }
    }

    #[test]
    fn a_first_start_killed_at_any_moment_leaves_a_whole_key_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let from = Instant::now();
        child(&dir.path().join("home")).wait_with_output().unwrap();
        let whole_run = from.elapsed();
        let mut killed = 0;
        for round in 0..KILLS {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("home");
            let mut first = child(&path);
            // This sleep waits for nothing: the moment of the kill is what the test varies.
            std::thread::sleep(whole_run * round / KILLS);
            let _ = first.kill();
            killed += u32::from(!first.wait_with_output().unwrap().status.success());

            let home = Home::open(Some(path.clone())).unwrap();
            let before = read_secret(&home.key_path()).unwrap();
            let identity = load(&home).unwrap();
            if let Some(text) = before {
                let kept = Identity::from_text(&text).unwrap();
                assert_eq!(kept.node_id, identity.node_id);
            }
            let leftovers = files_below(&path)
                .into_iter()
                .filter(|p| p.to_string_lossy().contains("unfinished"))
                .count();
            assert_eq!(leftovers, 0);
        }
        assert!(killed > 0, "no kill landed");
    }

    const KILLS: u32 = 40;
}
