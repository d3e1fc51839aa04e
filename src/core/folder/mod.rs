//! Shared folders: what a version of a path is, how versions of one path are compared, and what is
//! done when a directory, its base and the journal differ. Decisions only: `folders/` performs them.
//!
//! A folder is a set of paths. The journal holds one value for each path, its [`Version`]: what is at
//! the path, and a version vector that says which earlier versions its author had seen. A directory
//! that is bound to the folder is compared with it path by path.

pub mod path;
pub mod version;
