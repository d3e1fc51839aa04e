//! What can be configured: the keys, and how their values are read. To add a setting, add it to
//! [`KEYS`], to [`Settings`] and to [`Settings::set`].

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::alerts::{Thresholds, parse_after, parse_free};
use crate::core::expiry::{KeepPolicy, parse_keep};
use crate::core::forgetting::ForgottenRule;
use crate::core::hooks::Hook;
use crate::core::ids::HashAlgorithm;
use crate::core::rate::{RateLimits, Timetable};
use crate::core::scrub::ScrubRate;
use crate::net::{NamedAddress, Relay};

/// The most addresses in `peer`. They are dialled in turn, so with more each would be dialled
/// rarely.
const PEERS_MAX: usize = 32;

/// Longer than any name of a header in use.
const HEADER_BYTES_MAX: usize = 64;

/// A key of the configuration. `a_b` is `--a-b` on the command line and `CAN_SYNC_A_B` in the
/// environment.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name in the file.
    pub name: &'static str,
    /// The kind of its values.
    pub kind: Kind,
    /// Whether it may change while the agent runs.
    pub is_live: bool,
    /// The value when nobody sets the key.
    pub default: &'static str,
}

/// The kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// True or false.
    Switch,
    /// A list of texts.
    List,
}

/// A value as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Value {
    /// True or false.
    Switch(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    List(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(is_on) => write!(formatter, "{is_on}"),
            Self::Text(text) => formatter.write_str(text),
            Self::List(texts) => formatter.write_str(&texts.join(" ")),
        }
    }
}

const fn key(name: &'static str, kind: Kind, is_live: bool, default: &'static str) -> Key {
    Key { name, kind, is_live, default }
}

/// Every key, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    key("store", Kind::Text, false, "the embedded store"),
    key("store_key_file", Kind::Text, false, "none"),
    key("store_hash", Kind::Text, false, "what the store says, or its first asset shows"),
    key("store_key_header", Kind::Text, false, "Authorization, as a bearer key"),
    key("listen", Kind::Text, false, "127.0.0.1:5757, or the next free port"),
    key("page_listen", Kind::Text, false, "nowhere but on this machine"),
    key("dav_listen", Kind::Text, false, "nowhere but on this machine"),
    key("offline", Kind::Switch, false, "false"),
    key("relay", Kind::Text, false, "the public relays"),
    key("peer", Kind::List, true, "none"),
    key("bwlimit", Kind::Text, true, "off"),
    key("bwlimit_per_peer", Kind::Text, true, "off"),
    key("bwlimit_lan_exempt", Kind::Switch, true, "false"),
    key("scrub_rate", Kind::Text, false, "auto"),
    key("forgotten", Kind::Text, false, "keep"),
    key("trash_keep", Kind::Text, false, "all"),
    key("versions_keep", Kind::Text, false, "all"),
    key("alert_away", Kind::Text, true, "7d"),
    key("alert_out_of_sync", Kind::Text, true, "1d"),
    key("alert_one_copy", Kind::Text, true, "1d"),
    key("alert_free_space", Kind::Text, true, "off: when nothing is taken in any more"),
];

/// The values of all keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The base URL of another program's store; `None`: the embedded one.
    pub store: Option<String>,
    /// The file that holds that store's key.
    pub store_key_file: Option<PathBuf>,
    /// The algorithm of that store's hashes, where it does not say it.
    pub store_hash: Option<HashAlgorithm>,
    /// The header in which that store takes its key.
    pub store_key_header: Option<String>,
    /// Where to serve the API.
    pub listen: Option<SocketAddr>,
    /// Where the network reaches the page, with TLS.
    pub page_listen: Option<SocketAddr>,
    /// Where the network reaches WebDAV, with TLS.
    pub dav_listen: Option<SocketAddr>,
    /// Use the local network alone.
    pub offline: bool,
    /// The relay to use.
    pub relay: Relay,
    /// Addresses at which members without a known address are looked for.
    pub peers: Vec<NamedAddress>,
    /// The limit for all peers together.
    pub bwlimit: Option<Timetable>,
    /// The limit for each peer.
    pub bwlimit_per_peer: Option<Timetable>,
    /// Whether the local network is exempt from the limits.
    pub bwlimit_lan_exempt: bool,
    /// How fast the store is read again to find damage.
    pub scrub_rate: ScrubRate,
    /// What to do with the bytes of forgotten assets.
    pub forgotten: ForgottenRule,
    /// How long the trash and earlier versions of files are kept.
    pub keep: KeepPolicy,
    /// From when on the user is alerted.
    pub alerts: Thresholds,
    /// What is called with events. Only the file has hooks: whoever may change it can have programs
    /// run, and who may use the API cannot.
    pub hooks: Vec<Hook>,
}

impl Settings {
    /// The limits of the transfer rates.
    pub fn rate_limits(&self) -> RateLimits {
        RateLimits {
            all: self.bwlimit.clone(),
            each: self.bwlimit_per_peer.clone(),
            lan_exempt: self.bwlimit_lan_exempt,
        }
    }

    /// Sets the value of a key. A relative path is below `folder`.
    pub(super) fn set(&mut self, key: &str, value: &Value, folder: &Path) -> Result<(), String> {
        match (key, value) {
            ("store", Value::Text(text)) => self.store = Some(text.clone()),
            ("store_key_file", Value::Text(text)) => self.store_key_file = Some(folder.join(text)),
            ("store_hash", Value::Text(text)) => {
                let found = HashAlgorithm::from_name(text);
                let expected = || format!("expected blake3 or sha256, got {text:?}");
                self.store_hash = Some(found.ok_or_else(expected)?);
            }
            ("store_key_header", Value::Text(text)) => {
                self.store_key_header = Some(parse_header(text)?);
            }
            ("listen", Value::Text(text)) => self.listen = Some(parse_listen(text)?),
            ("page_listen", Value::Text(text)) => self.page_listen = Some(parse_open(text)?),
            ("dav_listen", Value::Text(text)) => self.dav_listen = Some(parse_open(text)?),
            ("offline", Value::Switch(is_on)) => self.offline = *is_on,
            ("relay", Value::Text(text)) => self.relay = parse_relay(text)?,
            ("peer", Value::List(texts)) if texts.len() > PEERS_MAX => {
                return Err(format!("expected at most {PEERS_MAX} addresses, got {}", texts.len()));
            }
            ("peer", Value::List(texts)) => {
                self.peers = texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
            }
            ("bwlimit", Value::Text(text)) => self.bwlimit = Some(parse_limit(text)?),
            ("bwlimit_per_peer", Value::Text(text)) => {
                self.bwlimit_per_peer = Some(parse_limit(text)?);
            }
            ("bwlimit_lan_exempt", Value::Switch(is_on)) => self.bwlimit_lan_exempt = *is_on,
            ("scrub_rate", Value::Text(text)) => self.scrub_rate = text.parse()?,
            ("forgotten", Value::Text(text)) => self.forgotten = text.parse()?,
            ("trash_keep", Value::Text(text)) => self.keep.trash_ms = parse_keep(text)?,
            ("versions_keep", Value::Text(text)) => self.keep.versions_ms = parse_keep(text)?,
            ("alert_away", Value::Text(text)) => self.alerts.away_ms = parse_after(text)?,
            ("alert_out_of_sync", Value::Text(text)) => {
                self.alerts.out_of_sync_ms = parse_after(text)?;
            }
            ("alert_one_copy", Value::Text(text)) => self.alerts.one_copy_ms = parse_after(text)?,
            ("alert_free_space", Value::Text(text)) => self.alerts.free_bytes = parse_free(text)?,
            _ => return Err(format!("expected {}", find(key)?.kind.expected())),
        }
        Ok(())
    }

    /// Checks the keys that depend on each other.
    pub(super) fn check_together(&self) -> Result<(), String> {
        if self.store.is_some() != self.store_key_file.is_some() {
            let (one, other) = match self.store {
                Some(_) => ("store", "store_key_file"),
                None => ("store_key_file", "store"),
            };
            return Err(format!("{one} needs {other}, too"));
        }
        for (key, is_set) in [
            ("store_hash", self.store_hash.is_some()),
            ("store_key_header", self.store_key_header.is_some()),
        ] {
            if is_set && self.store.is_none() {
                return Err(format!("{key} tells of another program's store: give store, too"));
            }
        }
        if self.bwlimit_lan_exempt && self.rate_limits().is_empty() {
            return Err("bwlimit_lan_exempt (--bwlimit-lan-exempt) exempts from a limit: give \
                        bwlimit (--bwlimit) or bwlimit_per_peer, too"
                .into());
        }
        Ok(())
    }
}

impl Key {
    /// Reads a value from the text of a variable or an option.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        let value = match self.kind {
            Kind::Text => Value::Text(text.to_owned()),
            Kind::Switch => Value::Switch(match &text.to_ascii_lowercase()[..] {
                "true" | "1" | "yes" | "on" => true,
                "false" | "0" | "no" | "off" => false,
                _ => return Err(format!("expected {}, got {text:?}", Kind::Switch.expected())),
            }),
            Kind::List => {
                let is_between = |c: char| c.is_whitespace() || c == ',';
                let texts = text.split(is_between).filter(|text| !text.is_empty());
                Value::List(texts.map(str::to_owned).collect())
            }
        };
        Settings::default().set(self.name, &value, Path::new("/"))?;
        Ok(value)
    }
}

impl Kind {
    /// Describes the expected value, for error messages.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Text => "a text in quotes",
            Self::Switch => "true or false",
            Self::List => "a list of texts, such as [\"one\", \"two\"]",
        }
    }
}

/// Checks the text of an option's value, and returns it.
pub fn check(key: &'static str, text: &str) -> Result<Value, String> {
    find(key)?.read(text)
}

/// The key of this name.
pub(super) fn find(name: &str) -> Result<&'static Key, String> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| {
        let near = KEYS.iter().map(|key| (distance(key.name, &name.replace('-', "_")), key.name));
        match near.min().filter(|(distance, _)| *distance <= 3) {
            Some((_, near)) => format!("unknown key {name:?}: did you mean {near}?"),
            None => {
                let all: Vec<_> = KEYS.iter().map(|key| key.name).collect();
                format!("unknown key {name:?}: expected one of {}", all.join(", "))
            }
        }
    })
}

/// The option of a key on the command line.
pub(super) fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// The variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("CAN_SYNC_{}", key.to_ascii_uppercase())
}

/// How many letters must be changed, added or left out to get from one word to the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (above, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for (at, b) in other.chars().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Commands reach the agent on this machine only, so no other address is useful.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let expected = || format!("expected a loopback address, such as 127.0.0.1:5757, got {text:?}");
    let address: SocketAddr = text.parse().map_err(|_| expected())?;
    address.ip().is_loopback().then_some(address).ok_or_else(expected)
}

/// An address that is opened to the network.
fn parse_open(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "expected an address of this machine and a port, such as 0.0.0.0:5759, got {text:?}"
        )
    })
}

/// The name of a header that may carry a key.
fn parse_header(text: &str) -> Result<String, String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match !text.is_empty() && text.len() <= HEADER_BYTES_MAX && text.bytes().all(is_name) {
        true => Ok(text.to_owned()),
        false => Err(format!("expected the name of a header, such as X-Api-Key, got {text:?}")),
    }
}

fn parse_relay(text: &str) -> Result<Relay, String> {
    match text {
        "off" | "none" => Ok(Relay::Off),
        _ if text.starts_with("https://") || text.starts_with("http://") => {
            Ok(Relay::Url(text.to_owned()))
        }
        _ => Err(format!("expected a URL, or off; got {text:?}")),
    }
}

fn parse_limit(text: &str) -> Result<Timetable, String> {
    text.parse().map_err(|error: crate::core::rate::RateError| error.to_string())
}
