//! The names of things: hashes, devices, groups, stores. Values only; nothing here decides.
//!
//! Every id prints in full with `Display` and as its first five bytes with [`Hash::short`] and
//! friends, which is what logs use. Serialized it is the full text.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected {expected} lower-case hex characters, got {got:?}")]
pub struct ParseIdError {
    expected: usize,
    got: String,
}

/// An id in the description of the API.
fn hex_schema(chars: usize) -> RefOr<Schema> {
    let pattern = format!("^[0-9a-f]{{{chars}}}$");
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).into()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The id with these bytes; `None` when their number is wrong.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The first five bytes in hex, for logs.
            pub fn short(&self) -> String {
                data_encoding::HEXLOWER.encode(&self.0[..5])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

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
                hex_schema(2 * $len)
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                data_encoding::HEXLOWER
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| Self::from_slice(&bytes))
                    .ok_or_else(|| ParseIdError {
                        expected: 2 * $len,
                        got: text.chars().take(80).collect(),
                    })
            }
        }
    };
}

id!(
    /// The name of an asset: the hash of its whole content by the group's [`HashAlgorithm`].
    Hash, 32
);
id!(
    /// A device's node ID: its Ed25519 public key, which QUIC authenticates.
    NodeId, 32
);
id!(
    /// The id of a group: shared by the devices paired with each other. It is not a secret.
    GroupId, 32
);
id!(
    /// A store's random identity, chosen once for its life.
    StoreId, 16
);
id!(
    /// The id of a log of the journal. It binds group and author; see `proto/journal.proto`.
    LogId, 16
);
id!(
    /// The id of a shared folder, random.
    FolderId, 16
);
id!(
    /// The hash of an op of the journal.
    OpHash, 32
);

/// The hash function that names a store's assets. All devices of a group use the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashAlgorithm {
    /// BLAKE3, 256 bit. Ranges of large assets are verified as they arrive.
    #[default]
    Blake3,
    /// SHA-256. An asset is verified only when it is whole.
    Sha256,
}

impl HashAlgorithm {
    /// The name people read and type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }

    /// The algorithm with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Blake3, Self::Sha256].into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The hash of a whole content.
    pub fn hash(self, content: &[u8]) -> Hash {
        match self {
            Self::Blake3 => Hash(*blake3::hash(content).as_bytes()),
            Self::Sha256 => Hash(<sha2::Sha256 as sha2::Digest>::digest(content).into()),
        }
    }
}

/// An asset's hash and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    /// The content's hash.
    pub hash: Hash,
    /// The content's length.
    pub size_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_as_lower_case_hex() {
        let hash = HashAlgorithm::Blake3.hash(b"abc");
        assert_eq!(hash.to_string().parse::<Hash>(), Ok(hash));
        assert!(hash.to_string().to_uppercase().parse::<Hash>().is_err());
        assert!("abc".parse::<Hash>().is_err());
        assert_eq!(hash.short().len(), 10);
    }

    #[test]
    fn both_algorithms_give_the_published_hashes() {
        assert_eq!(
            HashAlgorithm::Sha256.hash(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            HashAlgorithm::Blake3.hash(b"").to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }
}
