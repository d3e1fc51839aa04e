//! Forgetting an asset on purpose: a wish that all devices of the group see, and that each follows by
//! its own rule.
//!
//! F1  A wish deletes nothing by itself. It takes effect [`UNDO_MS`] after *this device* first saw it,
//!     whatever its author's clock said; until then anybody can take it back.
//! F2  The rule of a device says what then becomes of its bytes; unless its owner says otherwise they
//!     are kept ([`ForgottenRule`]).
//! F3  What took effect is not taken in again from others, until the wish is taken back.

use std::str::FromStr;

use crate::core::ids::Hash;
use crate::core::journal::op::Key;

/// The model of the records that hold wishes; the id is the hash.
pub const FORGET_MODEL: &str = "forget";

/// The field with the reason, for people.
pub const FORGET_REASON: &str = "reason";

/// The longest reason.
pub const FORGET_REASON_BYTES_MAX: usize = 1000;

/// The most wishes that a device follows at a time: any member can add more.
pub const WISHES_MAX: usize = 100_000;

/// How long a wish can be taken back.
pub const UNDO_MS: u64 = 30 * 24 * 3600 * 1000;

/// What a device does with the content of assets that the user chose to forget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ForgottenRule {
    /// The content stays on this device.
    #[default]
    Keep,
    /// The content is deleted from this device.
    Delete,
}

impl FromStr for ForgottenRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep" => Ok(Self::Keep),
            "delete" => Ok(Self::Delete),
            _ => Err(format!("expected keep or delete, got {text:?}")),
        }
    }
}

/// The record of the wish to forget an asset.
pub fn wish_key(hash: &Hash) -> Key {
    Key { model: FORGET_MODEL.to_owned(), id: hash.as_bytes().to_vec(), owned: false }
}

/// Whether a wish that this device first saw at `seen_ms` takes effect by now. If the clock was set
/// back, it takes effect later.
pub fn is_due(seen_ms: u64, now_ms: u64) -> bool {
    now_ms.checked_sub(seen_ms).is_some_and(|age_ms| age_ms >= UNDO_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_takes_effect_thirty_days_after_it_was_first_seen() {
        assert!(!is_due(1000, 1000 + UNDO_MS - 1));
        assert!(is_due(1000, 1000 + UNDO_MS));
        assert!(!is_due(1000, 0), "a clock that was set back puts it off");
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn bytes_are_kept_unless_the_device_says_otherwise() {
        assert_eq!(ForgottenRule::default(), ForgottenRule::Keep);
        assert_eq!("delete".parse(), Ok(ForgottenRule::Delete));
        assert!("erase".parse::<ForgottenRule>().unwrap_err().contains("keep or delete"));
    }
}
