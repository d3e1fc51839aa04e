//! Space that this device frees by its own policy: contents in the trash, and contents of earlier
//! versions of files in shared folders.
//!
//! X1  Nothing goes unless the owner of this device said so; by default all is kept.
//! X2  A content goes only when nothing holds it any more, and no order from elsewhere is enough: time
//!     counts from when *this device* first saw that nothing holds it, and begins anew when anything
//!     changes about that.
//! X3  What a person or a program added is an asset of its own, and stays until it is in the trash, also
//!     if a folder had the same content.

use crate::core::duration::parse_duration;
use crate::core::limits::FUTURE_MS_MAX;

/// The shortest time that a policy may keep: a slip of the finger must leave time to notice.
const KEEP_MS_MIN: u64 = 24 * 3600 * 1000;

/// How long this device keeps what nothing holds any more; `None`: for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepPolicy {
    /// Assets in the trash, in milliseconds.
    pub trash_ms: Option<u64>,
    /// Contents of earlier versions of files, in milliseconds.
    pub versions_ms: Option<u64>,
}

/// What refers to a content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct References {
    /// A path of a shared folder has it now.
    pub is_current: bool,
    /// It is an earlier version of a path of a shared folder.
    pub is_past: bool,
    /// Its asset is in the trash.
    pub is_trashed: bool,
    /// Its asset was added for itself, see X3.
    pub is_own: bool,
}

/// What a content waits for: its asset is in the trash, it is an earlier version, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waits {
    /// For the time that the trash is kept.
    pub trash: bool,
    /// For the time that earlier versions are kept.
    pub versions: bool,
}

impl References {
    /// What the content waits for until it may go; `None` if something holds it.
    pub fn waits(self) -> Option<Waits> {
        let is_held = self.is_current || self.is_own && !self.is_trashed;
        let waits = Waits { trash: self.is_trashed, versions: self.is_past };
        (!is_held && (waits.trash || waits.versions)).then_some(waits)
    }
}

impl KeepPolicy {
    /// Whether anything ever goes.
    pub fn is_all(self) -> bool {
        self == Self::default()
    }

    /// How long a content is kept that waits for `waits`; `None`: for ever. The longest counts.
    pub fn keep_ms(self, waits: Waits) -> Option<u64> {
        let trash_ms = if waits.trash { self.trash_ms? } else { 0 };
        let versions_ms = if waits.versions { self.versions_ms? } else { 0 };
        Some(trash_ms.max(versions_ms))
    }

    /// Whether a content goes now that waits since `since_ms`. A clock that was set back puts it off.
    pub fn is_due(self, waits: Waits, since_ms: u64, now_ms: u64) -> bool {
        let age_ms = now_ms.checked_sub(since_ms);
        self.keep_ms(waits).zip(age_ms).is_some_and(|(keep_ms, age_ms)| age_ms >= keep_ms)
    }
}

/// Whether an asset that came into the group at `origin_ms` tells, by its application, that it was added
/// for itself: this device tells since `tells_since_ms`. The clock of the adder may be ahead.
pub fn tells_of_itself(origin_ms: u64, tells_since_ms: u64) -> bool {
    origin_ms > tells_since_ms.saturating_add(FUTURE_MS_MAX)
}

/// Reads how long something is kept: `30d`, or `all` for ever.
///
/// # Errors
/// What was expected.
pub fn parse_keep(text: &str) -> Result<Option<u64>, String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(None);
    }
    let expected =
        || format!("expected a time of a day or more, such as 30d, or all, got {text:?}");
    let keep = parse_duration(text).map_err(|_| expected())?;
    let keep_ms = u64::try_from(keep.as_millis()).map_err(|_| expected())?;
    (keep_ms >= KEEP_MS_MIN).then_some(Some(keep_ms)).ok_or_else(expected)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DAY_MS: u64 = KEEP_MS_MIN;
    const TRASH: References =
        References { is_current: false, is_past: false, is_trashed: true, is_own: true };
    const PAST: References =
        References { is_current: false, is_past: true, is_trashed: false, is_own: false };

    #[test]
    fn what_a_path_an_asset_of_its_own_or_nobody_known_holds_waits_for_nothing() {
        assert_eq!(References { is_current: true, ..PAST }.waits(), None);
        assert_eq!(References { is_current: true, ..TRASH }.waits(), None);
        assert_eq!(References { is_own: true, ..PAST }.waits(), None, "added for itself");
        assert_eq!(References::default().waits(), None, "of which nothing is known");
        assert_eq!(TRASH.waits(), Some(Waits { trash: true, versions: false }));
        assert_eq!(PAST.waits(), Some(Waits { trash: false, versions: true }));
        let both = References { is_past: true, ..TRASH };
        assert_eq!(both.waits(), Some(Waits { trash: true, versions: true }));
    }

    #[test]
    fn by_default_all_is_kept_and_each_policy_frees_its_own_alone() {
        let (trash, past) = (TRASH.waits().unwrap(), PAST.waits().unwrap());
        let both = Waits { trash: true, versions: true };
        let nothing = KeepPolicy::default();
        assert!(nothing.is_all());
        for waits in [trash, past, both] {
            assert!(!nothing.is_due(waits, 0, u64::MAX));
        }
        let policy = KeepPolicy { trash_ms: Some(DAY_MS), versions_ms: None };
        assert!(policy.is_due(trash, 5, 5 + DAY_MS));
        assert!(!policy.is_due(trash, 5, 4 + DAY_MS));
        assert!(!policy.is_due(trash, 5, 0), "a clock that was set back puts it off");
        assert!(!policy.is_due(past, 0, u64::MAX));
        assert!(!policy.is_due(both, 0, u64::MAX), "an earlier version in the trash is a version");
        let policy = KeepPolicy { versions_ms: Some(3 * DAY_MS), ..policy };
        assert!(policy.is_due(past, 0, 3 * DAY_MS));
        assert!(!policy.is_due(both, 0, 3 * DAY_MS - 1), "the longest counts");
        assert!(policy.is_due(both, 0, 3 * DAY_MS));
    }

    #[test]
    fn an_asset_of_before_this_device_told_counts_as_added_for_itself() {
        assert!(!tells_of_itself(100, 100));
        assert!(!tells_of_itself(100 + FUTURE_MS_MAX, 100));
        assert!(tells_of_itself(101 + FUTURE_MS_MAX, 100));
    }

    #[test]
    fn a_time_to_keep_is_a_day_or_more_or_all() {
        assert_eq!(parse_keep("30d"), Ok(Some(30 * DAY_MS)));
        assert_eq!(parse_keep("24h"), Ok(Some(DAY_MS)));
        assert_eq!(parse_keep("all"), Ok(None));
        for text in ["23h", "0", "off", "keep", "1", ""] {
            assert!(parse_keep(text).unwrap_err().contains("30d"), "{text}");
        }
    }
}
