//! The bound directory: what is in it, reading from it and writing to it, without following a link
//! out of it and without losing an edit that a person makes at the same moment.
//!
//! Everything here is synchronous: call it on a thread that may block.
//!
//! | file | does |
//! |---|---|
//! | `root.rs` | holds the directory open, proves that it is still the right one, walks paths safely |
//! | `scan.rs` | lists what is in it, in bounded memory |
//! | `rules.rs` | what is ignored |
//! | `read.rs` | reads files that do not change meanwhile |
//! | `place.rs` | writes, replaces and removes, with `fresh.rs` (new content) and `moves.rs` |
//! | `keep.rs` | keeps what was replaced until nobody writes to it any more |
//! | `watch.rs` | hints about changes, from the operating system |
//! | `traits.rs` | what the file system can do |

mod fresh;
pub mod keep;
mod moves;
mod names;
pub mod place;
pub mod read;
pub mod root;
pub mod rules;
pub mod scan;
pub mod seen;
pub mod share;
pub mod traits;
pub mod watch;

pub use keep::Displaced;
pub use names::MARKER;
pub use place::{Place, PlaceError, Placed, Placement, Source};
pub use read::{ReadError, Stable};
pub use root::{Mark, Root, RootError};
pub use rules::Rules;
pub use scan::{Scanned, Skip};
pub use seen::{Seen, SeenKind};
pub use traits::Traits;
pub use watch::{Hint, Hints, Watch};
