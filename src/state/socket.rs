//! The Unix socket on which commands reach the agent: where it is, and that no other user can reach
//! it.
//!
//! K1  The socket is in a folder owned by the user with mode 0700, so no other user can connect to
//!     it or replace it. Commands check this before they connect.
//! K2  It is in the home. If that path is too long for a socket, or its file system has no sockets,
//!     it is in a new folder in `$XDG_RUNTIME_DIR` or in the temporary folder, and the home's
//!     `api-address` says where.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::home::{ApiAddress, Home, Kind, Lock, check_private};

/// The socket's name in its folder.
const NAME: &str = "api-socket";

/// The prefix of folders made outside the home.
const FOLDER_PREFIX: &str = "can-sync-";

/// The longest path that every system accepts for a socket: macOS accepts 103 bytes, Linux 107.
const PATH_BYTES_MAX: usize = 100;

/// The agent's end of the socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct ApiSocket {
    /// The non-blocking listener.
    pub listener: UnixListener,
    /// The path for [`ApiAddress`].
    pub place: PathBuf,
    _file: SocketFile,
}

/// A socket's file, and its folder if it was created for the socket.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    folder: Option<PathBuf>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // What cannot be removed here is removed by the next start.
        let _ = fs::remove_file(&self.path);
        if let Some(folder) = &self.folder {
            let _ = fs::remove_dir(folder);
        }
    }
}

impl Home {
    /// Listens for commands. Removes what a killed agent left.
    ///
    /// # Errors
    /// A socket can be created neither in the home nor elsewhere.
    pub fn listen_for_commands(&self, _lock: &Lock) -> Result<ApiSocket> {
        self.remove_old_socket();
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = runtime.filter(|folder| check_private(folder, Kind::Folder).is_ok());
        let bases = [runtime, Some(std::env::temp_dir())];
        let in_home = self.state_dir().join(NAME);
        match listen(&in_home) {
            Ok(listener) => {
                let file = SocketFile { path: in_home, folder: None };
                Ok(ApiSocket { listener, place: NAME.into(), _file: file })
            }
            Err(error) => {
                let elsewhere = bases.into_iter().flatten().find_map(|base| listen_in(&base).ok());
                elsewhere.with_context(|| {
                    format!(
                        "no socket can be made at {} ({error}), nor elsewhere",
                        in_home.display()
                    )
                })
            }
        }
    }

    /// The path of the socket of a running agent; `None` when its version has none.
    ///
    /// # Errors
    /// Another user could reach the socket.
    pub fn command_socket(&self, address: &ApiAddress) -> Result<Option<PathBuf>> {
        let Some(place) = &address.socket else { return Ok(None) };
        let path = self.state_dir().join(place);
        for (path, kind) in [(path.parent(), Kind::Folder), (Some(&*path), Kind::Socket)] {
            // If the socket does not exist, connecting fails later.
            if let Some(path) = path.filter(|path| path.symlink_metadata().is_ok()) {
                check_private(path, kind)?;
            }
        }
        Ok(Some(path))
    }

    /// Removes the socket of an earlier run. If that fails, listening fails later.
    fn remove_old_socket(&self) {
        let is_socket =
            |path: &Path| path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
        let in_home = self.state_dir().join(NAME);
        if is_socket(&in_home) {
            let _ = fs::remove_file(&in_home);
        }
        let place = self.api_address().ok().flatten().and_then(|address| address.socket);
        let Some(path) = place.filter(|place| place.is_absolute()) else { return };
        let Some(folder) = path.parent() else { return };
        let is_ours = folder
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(FOLDER_PREFIX));
        if is_ours && check_private(folder, Kind::Folder).is_ok() && is_socket(&path) {
            drop(SocketFile { folder: Some(folder.to_owned()), path });
        }
    }
}

/// Listens in a new folder below `base`.
fn listen_in(base: &Path) -> io::Result<ApiSocket> {
    let name = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 8]>());
    let folder = base.join(format!("{FOLDER_PREFIX}{name}"));
    // Creating the folder fails if the name exists, so a folder made by another user is never used.
    DirBuilder::new().mode(0o700).create(&folder)?;
    let path = folder.join(NAME);
    let file = SocketFile { path: path.clone(), folder: Some(folder) };
    Ok(ApiSocket { listener: listen(&path)?, place: path, _file: file })
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let bytes = path.as_os_str().len();
    if bytes > PATH_BYTES_MAX {
        let text = format!("its path has {bytes} bytes, a socket's takes {PATH_BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn open(path: &Path) -> (Home, Lock) {
        let home = Home::open(Some(path.to_owned())).unwrap();
        let lock = home.lock().unwrap();
        (home, lock)
    }

    fn address(socket: &ApiSocket) -> ApiAddress {
        let api = "http://127.0.0.1:1".to_owned();
        ApiAddress { api, pid: 1, socket: Some(socket.place.clone()) }
    }

    #[test]
    fn the_socket_is_in_the_home_for_this_user_alone_and_goes_with_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (home, lock) = open(&dir.path().join("home"));
        let socket = home.listen_for_commands(&lock).unwrap();
        let path = home.command_socket(&address(&socket)).unwrap().unwrap();
        assert_eq!(path, dir.path().join("home").join(NAME));
        UnixStream::connect(&path).unwrap();
        let address = address(&socket);
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        assert!(home.command_socket(&address).is_err(), "others may have connected");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_home_with_a_long_path_has_its_socket_elsewhere_in_a_folder_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (home, lock) = open(&dir.path().join("x".repeat(120)));
        let killed = home.listen_for_commands(&lock).unwrap();
        home.write_api_address(&lock, &address(&killed)).unwrap();
        let path = home.command_socket(&address(&killed)).unwrap().unwrap();
        let folder = path.parent().unwrap().to_owned();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
        UnixStream::connect(&path).unwrap();
        // A killed agent leaves its socket, and the next one removes it.
        std::mem::forget(killed);
        let next = home.listen_for_commands(&lock).unwrap();
        assert!(!folder.exists());
        assert!(next.place.exists());
    }

    #[test]
    fn what_a_killed_agent_left_in_the_home_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (home, lock) = open(&dir.path().join("home"));
        std::mem::forget(home.listen_for_commands(&lock).unwrap());
        let socket = home.listen_for_commands(&lock).unwrap();
        UnixStream::connect(home.state_dir().join(NAME)).unwrap();
        drop(socket);
    }
}
