//! The agent's files: where they are, and that no other user can read them.
//!
//! H1  Every folder is 0700 and every file 0600, owned by the user, and no symlink. Anything else
//!     is refused with the command that repairs it. Nothing is repaired silently, because another
//!     user may have read a secret.
//! H2  A secret file appears whole and durable under its name, or not at all.
//! H3  One agent per home: the holder of the [`Lock`].

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

/// The folders of one agent.
///
/// Small state is in the state folder. Assets and partial transfers share the data folder, so that
/// a finished transfer enters the store by a rename.
#[derive(Debug, Clone)]
pub struct Home {
    state: PathBuf,
    data: PathBuf,
}

/// Proof that this process is the only agent of its home. Dropping it releases the home.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Closing the file would not be enough: a child process that is just starting still has it
    /// open.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// What client commands need to find the running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiAddress {
    /// Base URL of the local API.
    pub api: String,
    /// The agent's process id.
    pub pid: u32,
    /// The socket for commands, as a path relative to the home; see [`super::socket`]. `None` when
    /// written by a version that had no socket.
    #[serde(default)]
    pub socket: Option<PathBuf>,
}

impl Home {
    /// The home in `explicit` (the value of `--home` or `CAN_SYNC_HOME`), or in the XDG folders.
    /// Creates what is missing.
    pub fn open(explicit: Option<PathBuf>) -> Result<Self> {
        let home = Self::locate(explicit, |name| std::env::var_os(name))?;
        for folder in [&home.state, &home.data] {
            create_private_folder(folder)?;
        }
        for folder in [home.store_dir(), home.partials_dir()] {
            create_private_folder(&folder)?;
        }
        home.check()?;
        Ok(home)
    }

    /// The home as seen by commands that talk to a running agent; `None` when no agent was ever
    /// started in it. Creates nothing.
    pub fn find(explicit: Option<PathBuf>) -> Result<Option<Self>> {
        let home = Self::locate(explicit, |name| std::env::var_os(name))?;
        if home.state.symlink_metadata().is_err() {
            return Ok(None);
        }
        home.check()?;
        Ok(Some(home))
    }

    /// Where the configuration is: `config.toml` in the home; without one there, that in the XDG
    /// folder. A file that is to be made belongs in the home given, else in the XDG folder. Creates
    /// nothing.
    pub fn config_path(explicit: Option<PathBuf>) -> Result<PathBuf> {
        let is_given = explicit.is_some();
        let home = Self::locate(explicit, |name| std::env::var_os(name))?.state.join(CONFIG_NAME);
        let xdg = xdg_folder(&|name| std::env::var_os(name), "XDG_CONFIG_HOME", ".config");
        let xdg = xdg.ok().map(|folder| folder.join(CONFIG_NAME));
        let is_there = |path: &PathBuf| path.symlink_metadata().is_ok();
        Ok(match xdg {
            Some(xdg) if !is_there(&home) && (!is_given || is_there(&xdg)) => xdg,
            _ => home,
        })
    }

    fn locate(
        explicit: Option<PathBuf>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self> {
        if let Some(folder) = explicit {
            ensure!(!folder.as_os_str().is_empty(), "the home folder given is empty");
            let folder = std::path::absolute(&folder)
                .with_context(|| format!("making {} absolute", folder.display()))?;
            return Ok(Self { state: folder.clone(), data: folder });
        }
        Ok(Self {
            state: xdg_folder(&variable, "XDG_STATE_HOME", ".local/state")?,
            data: xdg_folder(&variable, "XDG_DATA_HOME", ".local/share")?,
        })
    }

    fn check(&self) -> Result<()> {
        for folder in [&self.state, &self.data] {
            check_private(folder, Kind::Folder)?;
        }
        for folder in [self.store_dir(), self.partials_dir()] {
            check_private(&folder, Kind::Folder)?;
        }
        for file in [
            self.key_path(),
            self.index_db_path(),
            self.journal_db_path(),
            self.folders_db_path(),
            self.copies_db_path(),
            self.start_over_path(),
            self.api_token_path(),
            self.api_address_path(),
            self.udp_port_path(),
            self.scrub_path(),
            self.alerts_path(),
            self.hooks_path(),
            self.store_key_path(),
            self.lock_path(),
        ] {
            if file.symlink_metadata().is_ok() {
                check_private(&file, Kind::File)?;
            }
        }
        Ok(())
    }

    /// The folder of the small files: key, journal, index.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// The path of the device's secret key.
    pub fn key_path(&self) -> PathBuf {
        self.state.join("key")
    }

    /// The path of the index of known hashes.
    pub fn index_db_path(&self) -> PathBuf {
        self.state.join("index.db")
    }

    /// The path of the database with the group and its journal.
    pub fn journal_db_path(&self) -> PathBuf {
        self.state.join("journal.db")
    }

    /// The database of bound directories.
    pub fn folders_db_path(&self) -> PathBuf {
        self.state.join("folders.db")
    }

    /// The database of what this device wants and evicted.
    pub fn copies_db_path(&self) -> PathBuf {
        self.state.join("copies.db")
    }

    /// Whether there is a key but no journal. This is not a first start, unless the first start was
    /// interrupted.
    pub fn is_journal_lost(&self) -> bool {
        let is_there = |path: PathBuf| path.symlink_metadata().is_ok();
        let journal_bytes = self.journal_db_path().symlink_metadata().map_or(0, |file| file.len());
        let is_new = is_there(self.start_over_path()) || !is_there(self.key_path());
        !is_new && journal_bytes == 0
    }

    /// The path of the file that makes the next start turn this home into a new device.
    pub(super) fn start_over_path(&self) -> PathBuf {
        self.state.join("start-over")
    }

    /// The path of the token of the local API.
    pub fn api_token_path(&self) -> PathBuf {
        self.state.join("api-token")
    }

    /// The path of the file that says where the local API listens; see [`ApiAddress`].
    pub fn api_address_path(&self) -> PathBuf {
        self.state.join("api-address")
    }

    /// The path of the key of the embedded store when it is served without an agent.
    pub fn store_key_path(&self) -> PathBuf {
        self.state.join("store-key")
    }

    /// The folder of the embedded store.
    pub fn store_dir(&self) -> PathBuf {
        self.data.join("store")
    }

    /// The folder of large transfers under way.
    pub fn partials_dir(&self) -> PathBuf {
        self.data.join("partials")
    }

    /// The folder of the page's thumbnails, which can be made again.
    pub fn thumbnails_dir(&self) -> PathBuf {
        self.data.join("thumbnails")
    }

    fn scrub_path(&self) -> PathBuf {
        self.state.join("scrub")
    }

    fn alerts_path(&self) -> PathBuf {
        self.state.join("alerts")
    }

    fn hooks_path(&self) -> PathBuf {
        self.state.join("hooks")
    }

    fn dav_password_path(&self) -> PathBuf {
        self.state.join("dav-password")
    }

    fn udp_port_path(&self) -> PathBuf {
        self.state.join("udp-port")
    }

    fn lock_path(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// Becomes the only agent of this home, and removes unfinished secret files that a killed agent
    /// left.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.lock_path();
        let mut file = private_file_options()
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&mut file).take(PID_BYTES_MAX).read_to_string(&mut pid);
                bail!(
                    "another can-sync (process {}) already uses {}: stop it first, or start this \
                     one with another --home",
                    pid.trim(),
                    self.state.display()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        self.remove_unfinished()?;
        Ok(Lock { file })
    }

    fn remove_unfinished(&self) -> Result<()> {
        let entries = fs::read_dir(&self.state)
            .with_context(|| format!("listing {}", self.state.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX) {
                fs::remove_file(entry.path())
                    .with_context(|| format!("removing {}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// The token that a client shows to the local API; made at the first start.
    pub fn load_or_create_token(&self, _lock: &Lock) -> Result<String> {
        if let Some(token) = self.token()? {
            return Ok(token);
        }
        let token = random_token();
        write_secret(&self.api_token_path(), format!("{token}\n").as_bytes())?;
        Ok(token)
    }

    /// The token, if the agent has made one.
    pub fn token(&self) -> Result<Option<String>> {
        let path = self.api_token_path();
        let Some(bytes) = read_secret(&path)? else {
            return Ok(None);
        };
        let token = String::from_utf8(bytes).unwrap_or_default();
        let token = token.trim_end();
        ensure!(
            token.len() == TOKEN_CHARS && token.bytes().all(|b| b.is_ascii_hexdigit()),
            "{} holds no API token: remove the file and restart the agent, which makes a new one",
            path.display()
        );
        Ok(Some(token.to_owned()))
    }

    /// Saves the UDP port for the next start.
    pub fn write_udp_port(&self, _lock: &Lock, port: u16) -> Result<()> {
        write_private(&self.udp_port_path(), format!("{port}\n").as_bytes(), RenameFlags::empty())
    }

    /// Writes down how far the scrub has come.
    pub fn write_scrub(&self, json: &[u8]) -> Result<()> {
        write_private(&self.scrub_path(), json, RenameFlags::empty())
    }

    /// How far the scrub had come, if that can be read.
    pub fn scrub(&self) -> Option<Vec<u8>> {
        fs::read(self.scrub_path()).ok()
    }

    /// Writes down what is remembered of alerts.
    pub fn write_alerts(&self, json: &[u8]) -> Result<()> {
        write_private(&self.alerts_path(), json, RenameFlags::empty())
    }

    /// The saved state of the alerts, if the file can be read.
    pub fn alerts(&self) -> Option<Vec<u8>> {
        fs::read(self.alerts_path()).ok()
    }

    /// Writes down how far each hook has come.
    pub fn write_hooks(&self, json: &[u8]) -> Result<()> {
        write_private(&self.hooks_path(), json, RenameFlags::empty())
    }

    /// How far each hook had come, if that can be read.
    pub fn hooks(&self) -> Option<Vec<u8>> {
        fs::read(self.hooks_path()).ok()
    }

    /// The hash of WebDAV's password, if there is one.
    ///
    /// # Errors
    /// The file cannot be read, or others can read it.
    pub fn dav_password(&self) -> Result<Option<String>> {
        let bytes = read_secret(&self.dav_password_path())?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    /// Writes down the hash of WebDAV's password, or removes it.
    ///
    /// # Errors
    /// The file cannot be written or removed.
    pub fn write_dav_password(&self, hash: Option<&str>) -> Result<()> {
        let path = self.dav_password_path();
        match hash {
            Some(hash) => replace_private(&path, format!("{hash}\n").as_bytes()),
            None if path.exists() => {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
            }
            None => Ok(()),
        }
    }

    /// The key and certificate for browsers and WebDAV clients on the network; made by `make` at
    /// their first use.
    ///
    /// # Errors
    /// The file cannot be read or written, or others can read it.
    pub fn tls(&self, _lock: &Lock, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let path = self.state.join("tls");
        if let Some(bytes) = read_secret(&path)? {
            return Ok(bytes);
        }
        let bytes = make()?;
        write_secret(&path, &bytes)?;
        Ok(bytes)
    }

    /// The folder that was given for this home; `None` when it is in the XDG folders.
    pub fn given(&self) -> Option<&Path> {
        (self.state == self.data).then_some(&*self.state)
    }

    /// The UDP port of the last run, if it can be read.
    pub fn udp_port(&self) -> Option<u16> {
        let text = fs::read_to_string(self.udp_port_path()).ok()?;
        text.trim().parse().ok().filter(|port| *port > 0)
    }

    /// Writes down for clients where the API listens.
    pub fn write_api_address(&self, _lock: &Lock, address: &ApiAddress) -> Result<()> {
        let mut json = serde_json::to_vec(address)?;
        json.push(b'\n');
        write_private(&self.api_address_path(), &json, RenameFlags::empty())
    }

    /// Where the API listens; `None` when no agent has written it. It may be stale after a crash.
    pub fn api_address(&self) -> Result<Option<ApiAddress>> {
        let path = self.api_address_path();
        let Some(bytes) = read_secret(&path)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is damaged: restart the agent", path.display()))
    }

    /// Removes the API address when the agent stops.
    pub fn remove_api_address(&self, _lock: &Lock) -> Result<()> {
        match fs::remove_file(self.api_address_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Our folder by the XDG Base Directory Specification, in which a relative value counts as unset.
fn xdg_folder(
    variable: &impl Fn(&str) -> Option<OsString>,
    name: &str,
    below_home: &str,
) -> Result<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute(name).or_else(|| absolute("HOME").map(|p| p.join(below_home)));
    let base = base.with_context(|| {
        format!("neither {name} nor HOME is set: name the home folder with --home")
    })?;
    Ok(base.join("can-sync"))
}

/// Names that occur together only in a home or in the store of a home.
const SIGNS: [&[&str]; 5] = [
    &["key", "journal.db"],
    &["key", "api-token"],
    &["store-key", "lock"],
    &["store.db", "content", "lock"],
    &["store/store.db", "store/content"],
];

/// Whether `folder` is a folder of an agent, running or not, or a copy of one.
pub fn is_home(folder: &Path) -> bool {
    let holds = |name: &&str| folder.join(name).symlink_metadata().is_ok();
    SIGNS.iter().any(|names| names.iter().all(holds))
}

/// Thirty-two random bytes in hex.
pub fn random_token() -> String {
    data_encoding::HEXLOWER.encode(&rand::random::<[u8; TOKEN_CHARS / 2]>())
}

/// Creates `path` with `bytes`, 0600 whatever the umask, durable on return. Refuses to replace a
/// file. A crash leaves the whole file or none.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    write_private(path, bytes, RenameFlags::NOREPLACE)
}

/// Puts a file with `bytes` in place of the one at `path`, 0600 whatever the umask, durable on
/// return. A crash leaves the old file or the new one.
pub fn replace_private(path: &Path, bytes: &[u8]) -> Result<()> {
    write_private(path, bytes, RenameFlags::empty())
}

/// The content of a file that only this user can read; `None` when it does not exist.
pub fn read_secret(path: &Path) -> Result<Option<Vec<u8>>> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
        Ok(_) => check_private(path, Kind::File)?,
    }
    let mut bytes = Vec::new();
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .and_then(|file| file.take(SECRET_BYTES_MAX).read_to_end(&mut bytes))
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(bytes))
}

/// Prepares `path` for a database by creating an empty private file: SQLite would give a new file
/// the mode of the umask, and gives the WAL the mode of the database.
pub fn private_database_file(path: &Path) -> Result<()> {
    match private_file_options().create_new(true).open(path) {
        Ok(file) => file
            .set_permissions(fs::Permissions::from_mode(FILE_MODE))
            .with_context(|| format!("setting the mode of {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            check_private(path, Kind::File)
        }
        Err(error) => Err(error).with_context(|| format!("creating {}", path.display())),
    }
}

const CONFIG_NAME: &str = "config.toml";
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const OTHERS: u32 = 0o077;
const TOKEN_CHARS: usize = 64;
/// Far above any secret file of ours; a larger file is not one.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
const PID_BYTES_MAX: u64 = 32;
const UNFINISHED_PREFIX: &str = ".unfinished-";

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Folder,
    File,
    Socket,
}

fn private_file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options
}

fn create_private_folder(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(parent)
            .with_context(|| format!("creating {}", parent.display()))?;
    }
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(FOLDER_MODE))
            .with_context(|| format!("setting the mode of {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).with_context(|| format!("creating {}", path.display())),
    }
}

pub(super) fn check_private(path: &Path, kind: Kind) -> Result<()> {
    let (expected, right_mode) = match kind {
        Kind::Folder => ("folder", FOLDER_MODE),
        Kind::File => ("regular file", FILE_MODE),
        Kind::Socket => ("socket", FILE_MODE),
    };
    let shown = path.display();
    let found = path.symlink_metadata().with_context(|| format!("looking at {shown}"))?;
    ensure!(
        !found.is_symlink(),
        "{shown} is a symbolic link, expected a {expected}: put the real one in its place"
    );
    let right_kind = match kind {
        Kind::Folder => found.is_dir(),
        Kind::File => found.is_file(),
        Kind::Socket => found.file_type().is_socket(),
    };
    ensure!(right_kind, "{shown} is not a {expected}: move it out of the way");
    let us = rustix::process::geteuid().as_raw();
    ensure!(
        found.uid() == us,
        "{shown} belongs to user {}, expected user {us}: start can-sync as its owner, or hand it \
         over with `chown {us} '{shown}'`",
        found.uid()
    );
    let mode = found.mode() & 0o7777;
    ensure!(
        mode & OTHERS == 0,
        "{shown} has mode {mode:04o}, so others on this machine may have read it or changed it; \
         expected {right_mode:04o}: make sure nobody did, then run `chmod {right_mode:o} '{shown}'`"
    );
    Ok(())
}

/// Write, fsync, rename, fsync of the folder: if one of them is left out, a crash can leave an
/// empty file or none.
fn write_private(path: &Path, bytes: &[u8], flags: RenameFlags) -> Result<()> {
    let folder = path.parent().context("a secret file needs a folder")?;
    let unfinished = folder.join(format!("{UNFINISHED_PREFIX}{}", random_token()));
    let written = (|| -> io::Result<()> {
        let mut file = private_file_options().create_new(true).open(&unfinished)?;
        file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        rustix::fs::renameat_with(CWD, &unfinished, CWD, path, flags)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written.with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests;
