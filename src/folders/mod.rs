//! Shared folders on this device: a directory is bound to a folder, and both are kept alike. The
//! decisions are in `core/folder/`; here they are carried out.
//!
//! `disk/` is all that touches the directory. It knows paths, stats and bytes, and nothing of the
//! journal.

pub mod disk;
