//! Which contents this device wants. Every device has the names, tags and history of all assets; it
//! fetches the contents of those that it wants.
//!
//! W1  No other code decides whether an asset is wanted here.
//! W2  An asset that is not wanted is not fetched. A copy that is here stays until it is evicted.
//! W3  A file of a bound folder is always wanted, whatever the expression says, unless it was
//!     evicted.

use crate::core::expression::{AssetFacts, Expression};

/// What this device wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Want {
    /// The assets that it wants; `None` for all.
    pub expression: Option<Expression>,
}

/// What this device itself says of an asset: evicted, or in use. The decision depends on it beside the
/// asset's facts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claims {
    /// Whether the asset was evicted here and has not been fetched since.
    pub is_evicted: bool,
    /// Whether a file of a bound folder has this content.
    pub is_in_bound_folder: bool,
}

impl Want {
    /// Whether this device wants every asset.
    pub fn is_all(&self) -> bool {
        self.expression.is_none()
    }

    /// Whether the asset is wanted. Returns false while too little is known about it to decide; the
    /// caller asks again when more is known.
    pub fn wants(&self, facts: &AssetFacts, claims: Claims) -> bool {
        let is_chosen = || self.expression.as_ref().is_none_or(|chosen| chosen.matches(facts));
        !claims.is_evicted && (claims.is_in_bound_folder || is_chosen())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn image() -> AssetFacts {
        AssetFacts { media_type: Some("image/png".into()), ..AssetFacts::default() }
    }

    fn want(text: &str) -> Want {
        Want { expression: Some(Expression::parse(text).unwrap()) }
    }

    #[test]
    fn a_device_without_an_expression_wants_everything_but_what_it_evicted() {
        let evicted = Claims { is_evicted: true, ..Claims::default() };
        assert!(Want::default().wants(&AssetFacts::default(), Claims::default()));
        assert!(!Want::default().wants(&image(), evicted));
    }

    #[test]
    fn an_expression_chooses_and_waits_until_enough_is_known() {
        assert!(want("type=image/*").wants(&image(), Claims::default()));
        assert!(want("type=image/").wants(&image(), Claims::default()));
        assert!(!want("type=ima/").wants(&image(), Claims::default()));
        assert!(!want("type=video/*").wants(&image(), Claims::default()));
        assert!(!want("not type=video/*").wants(&AssetFacts::default(), Claims::default()));
    }

    #[test]
    fn a_file_of_a_bound_folder_is_wanted_whatever_the_expression_says_until_it_is_evicted() {
        let bound = Claims { is_in_bound_folder: true, is_evicted: false };
        assert!(want("type=video/*").wants(&image(), bound));
        assert!(!want("type=video/*").wants(&image(), Claims { is_evicted: true, ..bound }));
    }
}
