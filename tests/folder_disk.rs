//! The bound directory: hostile names and links, edits in the same moment, crashes, hints.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "folder_disk/common.rs"]
mod common;
#[path = "folder_disk/keep.rs"]
mod keep;
#[path = "folder_disk/killed.rs"]
mod killed;
#[path = "folder_disk/mounts.rs"]
mod mounts;
#[path = "folder_disk/place.rs"]
mod place;
#[path = "folder_disk/races.rs"]
mod races;
#[path = "folder_disk/scan.rs"]
mod scan;
#[path = "folder_disk/watch.rs"]
mod watch;
