//! Shared folders: what a version of a path is, how versions of one path are compared, and what is
//! done when a directory, its base and the journal differ. Decisions only: `folders/` performs them.
//!
//! A folder is a set of paths. The journal holds one value for each path, its [`version::Version`]:
//! what is at the path, and a version vector that says which earlier versions its author had seen. A
//! directory that is bound to the folder is compared with it path by path. `proto/folders.proto` says how the
//! journal carries all this.
//!
//! | file | decides |
//! |---|---|
//! | [`path`] | what a path is, and its text |
//! | [`version`] | what a version is, and which of two contains the other |
//! | [`resolve`] | what becomes of a version that lost its place in the journal |
//! | [`names`] | the names of conflict copies |
//! | [`three_way`] | what is done about a path when disk, base and journal differ |
//! | [`brake`] | when so much changes at once that the folder is held |
//! | [`git`] | which files git moves into a pack |
//! | [`collide`] | which names a file system cannot hold beside each other, or at all |

use crate::core::ids::FolderId;

use path::PathKey;

pub mod brake;
pub mod collide;
pub mod git;
pub mod names;
pub mod path;
pub mod resolve;
pub mod three_way;
pub mod version;

/// The model of the records that name folders. Their ids are [`FolderId`]s.
pub const FOLDER_MODEL: &str = "folder";

/// The field of a [`FOLDER_MODEL`] record: a text, the folder's name.
pub const FOLDER_NAME: &str = "name";

/// The field of a [`FOLDER_MODEL`] record: the node ID of the device that created the folder.
pub const FOLDER_CREATED_BY: &str = "created_by";

/// The longest name of a folder, in bytes.
pub const FOLDER_NAME_BYTES_MAX: usize = 255;

/// The model of the records in which a device says which directory it has bound to a folder: owned by
/// it, with the folder's id in lower-case hex as their id.
pub const BINDING_MODEL: &str = "folder_binding";

/// The field of a [`BINDING_MODEL`] record: a text, the directory.
pub const BINDING_DIR: &str = "dir";

/// The field of a [`BINDING_MODEL`] record: a text, which way changes go.
pub const BINDING_MODE: &str = "mode";

/// The model of the records that hold the versions of paths. Each has an id of [`file_id`] and one
/// field.
pub const FILE_MODEL: &str = "file";

/// The field of a [`FILE_MODEL`] record: bytes, an encoded [`version::Version`].
pub const FILE_VERSION: &str = "version";

/// The length of the id of a [`FILE_MODEL`] record.
pub const FILE_ID_BYTES: usize = FolderId::LEN + 16;

/// The id of the record of a path.
pub fn file_id(folder: FolderId, key: PathKey) -> [u8; FILE_ID_BYTES] {
    let mut id = [0; FILE_ID_BYTES];
    id[..FolderId::LEN].copy_from_slice(&folder.0);
    id[FolderId::LEN..].copy_from_slice(&key.0);
    id
}

/// The folder and path of a record's id; `None` when it is no id of [`file_id`].
pub fn split_file_id(id: &[u8]) -> Option<(FolderId, PathKey)> {
    let (folder, key) = id.split_at_checked(FolderId::LEN)?;
    Some((FolderId::from_slice(folder)?, PathKey(key.try_into().ok()?)))
}

/// The stream of the folder's history. Each of its events has [`history_kind`] as its type.
pub fn history_stream(folder: FolderId) -> String {
    format!("folder/{folder}")
}

/// The type of the events about a path.
pub fn history_kind(key: PathKey) -> String {
    data_encoding::HEXLOWER.encode(&key.0)
}
