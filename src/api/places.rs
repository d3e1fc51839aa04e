//! The text form of positions in a listing: cursors of records and events, and pages of records.
//!
//! A cursor is `<epoch>-<arrival number>`, with `.<index>` if it is between the events of one op. An
//! ETag is the cursor of a record's last change.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::core::ids::{LogId, NodeId};
use crate::state::journal::{Cursor, Owner};

/// Implements serde and a schema for a type whose JSON is its text.
macro_rules! text {
    ($name:ident, $pattern:literal, $description:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some($pattern));
                text.description(Some($description)).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }
    };
}

text!(
    Cursor,
    r"^[0-9a-f]{32}-[0-9]+$",
    "A place in the order of arrival on this device. Also a record's ETag."
);
text!(
    EventPlace,
    r"^[0-9a-f]{32}-[0-9]+(\.[0-9]+)?$",
    "A place in an event stream, in the order of arrival on this device."
);
text!(RecordPlace, "^[A-Za-z0-9_-]+$", "Where a page of records starts; opaque.");

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.arr)
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-');
        let parsed = parts.and_then(|(epoch, arr)| {
            Some(Self { epoch: epoch.parse().ok()?, arr: arr.parse().ok()? })
        });
        parsed.ok_or_else(|| format!("{text:?} is no cursor or ETag of this API"))
    }
}

/// A position in an event stream: after an op, or after one of the op's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventPlace {
    pub(super) epoch: LogId,
    pub(crate) arr: u64,
    /// [`u64::MAX`]: after all events of the op.
    pub(super) index: u64,
}

impl From<Cursor> for EventPlace {
    /// The position after all events of the op.
    fn from(Cursor { epoch, arr }: Cursor) -> Self {
        Self { epoch, arr, index: u64::MAX }
    }
}

impl fmt::Display for EventPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, arr, index } = *self;
        Cursor { epoch, arr }.fmt(f)?;
        if index == u64::MAX { Ok(()) } else { write!(f, ".{index}") }
    }
}

impl FromStr for EventPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((whole, index)) = text.split_once('.') else {
            return text.parse().map(Cursor::into);
        };
        let index = index.parse().map_err(|_| format!("{text:?} is no event cursor"))?;
        Ok(Self { index, ..whole.parse::<Cursor>()?.into() })
    }
}

/// The position after the record with this owner and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordPlace(pub(super) Owner, pub(super) Vec<u8>);

impl fmt::Display for RecordPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(owner, id) = self;
        let owner: &[u8] = match owner {
            Owner::Shared => &[],
            Owner::Device(device) => &device.0,
        };
        let length = [u8::try_from(owner.len()).unwrap_or_default()];
        f.write_str(&BASE64URL_NOPAD.encode(&[&length[..], owner, id].concat()))
    }
}

impl FromStr for RecordPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok();
        let parsed = bytes.as_deref().and_then(|bytes| match bytes.split_first()? {
            (0, id) => Some(Self(Owner::Shared, id.to_vec())),
            (&length, rest) => {
                let (owner, id) = rest.split_at_checked(length.into())?;
                Some(Self(Owner::Device(NodeId::from_slice(owner)?), id.to_vec()))
            }
        });
        parsed.ok_or_else(|| format!("{text:?} is not the `next` of an earlier page"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_from_their_text() {
        let epoch = LogId([0xab; 16]);
        let cursor = Cursor { epoch, arr: 7 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for index in [0, 3, u64::MAX] {
            let place = EventPlace { epoch, arr: 7, index };
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for place in [
            RecordPlace(Owner::Shared, b"x".to_vec()),
            RecordPlace(Owner::Shared, vec![]),
            RecordPlace(Owner::Device(NodeId([7; 32])), vec![0, 255]),
        ] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for text in ["", "-", "1-1", "x", &format!("{epoch}-"), &format!("{epoch}--1")] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
            assert!(text.parse::<EventPlace>().is_err(), "{text}");
        }
        for text in ["", "!", "BQ", "IAAA"] {
            assert!(text.parse::<RecordPlace>().is_err(), "{text}");
        }
    }
}
