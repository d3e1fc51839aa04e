//! What devices report about themselves in the journal: events of one stream, and one record with
//! the state of the device.
//!
//! An event's data is JSON, for people and for later versions. Later versions only add members, and
//! a version shows members that it does not know as they are.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::core::attributes::{Attribute, AttributeValue};
use crate::core::ids::{Hash, NodeId};
use crate::core::journal::asset::{JournalRow, TAGS, TRASHED, attribute_value};
use crate::core::journal::draft::{DraftChange, DraftPut};
use crate::core::journal::op::{Key, Value};
use crate::core::limits::EVENT_DATA_BYTES_MAX;

/// The stream of [`LogEvent`]s.
pub const DEVICE_STREAM: &str = "device";

/// The model of [`DeviceState`]; its records are owned.
pub const DEVICE_MODEL: &str = "device";

/// The id of each [`DeviceState`] record: the owner tells the devices apart.
pub const DEVICE_ID: &[u8] = b"self";

/// An event on the device that writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum LogEvent {
    /// An asset was added to the store on this device.
    AssetAdded {
        /// The asset.
        hash: Hash,
        /// The asset's size.
        size_bytes: u64,
    },
    /// An asset was received from another device.
    AssetReceived {
        /// The asset.
        hash: Hash,
        /// The asset's size.
        size_bytes: u64,
        /// The device that sent it; `None` if a crash lost that knowledge.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<NodeId>,
    },
    /// The user put an asset into the trash.
    AssetTrashed {
        /// The asset.
        hash: Hash,
    },
    /// The user took an asset out of the trash.
    AssetRestored {
        /// The asset.
        hash: Hash,
    },
    /// The user changed an asset's description or tags.
    AssetChanged {
        /// The asset.
        hash: Hash,
        /// The names of the changed fields.
        fields: BTreeSet<String>,
        /// What they held before; see [`Held`].
        #[serde(default, skip_serializing_if = "Held::is_empty")]
        before: Held,
        /// What they held afterwards.
        #[serde(default, skip_serializing_if = "Held::is_empty")]
        after: Held,
    },
    /// A device was added to the group, or added the writer.
    DevicePaired {
        /// The device.
        device: NodeId,
        /// The device's name.
        name: String,
        /// The digits that both devices showed; `None` for a device that introduced itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        short_code: Option<String>,
    },
    /// A device was removed from the group.
    DeviceRemoved {
        /// The device.
        device: NodeId,
        /// The device's name.
        name: String,
    },
    /// A device that was away connected.
    DeviceConnected {
        /// The device.
        device: NodeId,
        /// The device's name.
        name: String,
    },
    /// A device disconnected and did not come back soon.
    DeviceLost {
        /// The device.
        device: NodeId,
        /// The device's name.
        name: String,
        /// The reason, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The integrity of content or of another device's statements is in doubt.
    IntegrityAlarm {
        /// A description, for people.
        what: String,
        /// The asset concerned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hash: Option<Hash>,
        /// The device concerned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<NodeId>,
    },
    /// An alert was raised.
    Alert {
        /// The alert's id.
        alert: String,
        /// What is seen, and what to do about it, for people.
        what: String,
        /// The device concerned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<NodeId>,
        /// When it was raised, ms since the Unix epoch. Together with the id it names this raising:
        /// a crash may have written the event twice.
        raised_ms: u64,
    },
    /// An alert has ended.
    AlertCleared {
        /// The alert's id.
        alert: String,
        /// What it said last.
        what: String,
        /// The device concerned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<NodeId>,
        /// When it was raised.
        raised_ms: u64,
    },
}

/// The values of an asset's fields, by field name: a text, a number, or the sorted tags; null: no
/// value. Texts are cut, with an ellipsis, where the event would be too long; only the first 64 tags
/// are included.
pub type Held = BTreeMap<String, serde_json::Value>;

/// The most characters of a text in an event, an ellipsis included. These limits are tried in turn
/// until the event fits. With the last one even an edit of all fields fits, every character escaped.
const HELD_CHARS: [usize; 3] = [4_096, 256, 16];

/// The most tags in an event.
const HELD_TAGS_MAX: usize = 64;

fn held_text(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(chars_max - 1).chain(['…']).collect(),
    }
}

fn held_tags<'a>(tags: impl Iterator<Item = &'a String>, chars_max: usize) -> serde_json::Value {
    tags.take(HELD_TAGS_MAX).map(|tag| held_text(tag, chars_max)).collect()
}

fn held_value(value: Option<&Value>, chars_max: usize) -> serde_json::Value {
    match value {
        Some(Value::Text(text)) => held_text(text, chars_max).into(),
        Some(Value::Int(number)) => (*number).into(),
        Some(Value::Bool(is_so)) => (*is_so).into(),
        Some(Value::Double(_) | Value::Bytes(_)) | None => serde_json::Value::Null,
    }
}

/// What the fields that `edit` sets hold before and after it.
fn held(edit: &DraftPut, journal: &JournalRow, chars_max: usize) -> (Held, Held) {
    let (mut before, mut after) = (Held::new(), Held::new());
    for (field, value) in edit.set.iter().filter(|(field, _)| *field != TRASHED) {
        let stood = match Attribute::of_field(field) {
            Some(attribute) => journal.attributes.get(&attribute).cloned().flatten(),
            None => journal.description.clone().map(AttributeValue::Text),
        };
        let stood = stood.as_ref().map(attribute_value);
        before.insert(field.clone(), held_value(stood.as_ref(), chars_max));
        after.insert(field.clone(), held_value(value.as_ref(), chars_max));
    }
    if !(edit.add.is_empty() && edit.remove.is_empty()) {
        let taken: BTreeSet<&String> = edit.remove.iter().map(|tag| &tag.elem).collect();
        let stay = journal.tags.iter().filter(|tag| !taken.contains(tag));
        let now: BTreeSet<&String> = stay.chain(edit.add.iter().map(|tag| &tag.elem)).collect();
        before.insert(TAGS.to_owned(), held_tags(journal.tags.iter(), chars_max));
        after.insert(TAGS.to_owned(), held_tags(now.into_iter(), chars_max));
    }
    (before, after)
}

/// The names of the types of [`LogEvent`]s, in the order of its variants.
pub const EVENT_TYPES: [&str; 12] = [
    "asset-added",
    "asset-received",
    "asset-trashed",
    "asset-restored",
    "asset-changed",
    "device-paired",
    "device-removed",
    "device-connected",
    "device-lost",
    "integrity-alarm",
    "alert",
    "alert-cleared",
];

impl LogEvent {
    /// The events for the edits of the user that a write contains. `journal` is the asset's row before
    /// it.
    pub fn of_edit(hash: Hash, edit: &DraftPut, journal: &JournalRow) -> Vec<Self> {
        let mut events = Vec::new();
        match edit.set.get(TRASHED) {
            Some(Some(Value::Bool(true))) => events.push(Self::AssetTrashed { hash }),
            Some(_) => events.push(Self::AssetRestored { hash }),
            None => {}
        }
        let sets = edit.add.iter().chain(&edit.remove).map(|elem| &elem.field);
        let fields = edit.set.keys().filter(|field| *field != TRASHED).chain(sets);
        let fields: BTreeSet<String> = fields.cloned().collect();
        if !fields.is_empty() {
            let event = |chars_max| {
                let (before, after) = held(edit, journal, chars_max);
                Self::AssetChanged { hash, fields: fields.clone(), before, after }
            };
            let fits = |event: &Self| event.data().len() <= EVENT_DATA_BYTES_MAX;
            events.extend(HELD_CHARS.into_iter().map(event).find(fits));
        }
        events
    }

    /// The name of its type, one of [`EVENT_TYPES`].
    pub fn kind(&self) -> &'static str {
        EVENT_TYPES[match self {
            Self::AssetAdded { .. } => 0,
            Self::AssetReceived { .. } => 1,
            Self::AssetTrashed { .. } => 2,
            Self::AssetRestored { .. } => 3,
            Self::AssetChanged { .. } => 4,
            Self::DevicePaired { .. } => 5,
            Self::DeviceRemoved { .. } => 6,
            Self::DeviceConnected { .. } => 7,
            Self::DeviceLost { .. } => 8,
            Self::IntegrityAlarm { .. } => 9,
            Self::Alert { .. } => 10,
            Self::AlertCleared { .. } => 11,
        }]
    }

    /// The event's data as a JSON object.
    pub fn data(&self) -> Vec<u8> {
        let tagged = serde_json::to_value(self).unwrap_or_default();
        tagged["data"].to_string().into_bytes()
    }

    /// The draft change that appends this event to the device's stream.
    pub fn to_change(&self) -> DraftChange {
        let (stream, kind) = (DEVICE_STREAM.to_owned(), self.kind().to_owned());
        DraftChange::Event { stream, kind, data: self.data() }
    }

    /// Reads an event of [`DEVICE_STREAM`]. `None` if a later version or another program wrote it.
    pub fn parse(kind: &str, data: &[u8]) -> Option<Self> {
        let data: serde_json::Value = serde_json::from_slice(data).ok()?;
        serde_json::from_value(serde_json::json!({ "type": kind, "data": data })).ok()
    }
}

/// The state of a device, as it reports it itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceState {
    /// The device's name.
    pub name: String,
    /// Operating system and processor, such as `linux-x86_64`.
    pub platform: String,
    /// The agent's version.
    pub version: String,
    /// The number of assets in its store, trashed ones included.
    pub store_assets: u64,
    /// The bytes of those assets.
    pub store_bytes: u64,
    /// Free bytes on the disk of its home; approximate, because small changes are not reported.
    pub free_bytes: Option<u64>,
    /// When a connection with another device last began or ended, ms since the Unix epoch.
    pub contact_ms: Option<u64>,
    /// The addresses at which other devices can reach it.
    pub addresses: BTreeSet<String>,
    /// The site it is on; empty when it has none.
    #[serde(default)]
    pub site: String,
    /// What it wants; empty for everything.
    #[serde(default)]
    pub wants: String,
}

impl DeviceState {
    /// The names of its fields.
    pub const FIELDS: [&str; 10] = [
        "name",
        "platform",
        "version",
        "store_assets",
        "store_bytes",
        "free_bytes",
        "contact_ms",
        "addresses",
        "site",
        "wants",
    ];

    /// The key of the writer's own record.
    pub fn key() -> Key {
        Key { model: DEVICE_MODEL.to_owned(), id: DEVICE_ID.to_vec(), owned: true }
    }

    /// This state as the fields of its record.
    pub fn fields(&self) -> BTreeMap<String, Option<Value>> {
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        // Records hold signed numbers; none of these comes near the bound.
        let int = |n: u64| Some(Value::Int(i64::try_from(n).unwrap_or(i64::MAX)));
        let addresses: Vec<&str> = self.addresses.iter().map(String::as_str).collect();
        let fields = [
            ("name", text(&self.name)),
            ("platform", text(&self.platform)),
            ("version", text(&self.version)),
            ("store_assets", int(self.store_assets)),
            ("store_bytes", int(self.store_bytes)),
            ("free_bytes", self.free_bytes.and_then(int)),
            ("contact_ms", self.contact_ms.and_then(int)),
            // One text field rather than a set: a set remembers every element ever removed.
            ("addresses", text(&addresses.join("\n"))),
            ("site", text(&self.site)),
            ("wants", text(&self.wants)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Reads a record's fields. A field that is missing or of another type is left empty.
    pub fn from_fields(fields: &BTreeMap<String, Option<Value>>) -> Self {
        let text = |name: &str| match fields.get(name) {
            Some(Some(Value::Text(text))) => text.clone(),
            _ => String::new(),
        };
        let int = |name: &str| match fields.get(name) {
            Some(Some(Value::Int(n))) => u64::try_from(*n).ok(),
            _ => None,
        };
        Self {
            name: text("name"),
            platform: text("platform"),
            version: text("version"),
            store_assets: int("store_assets").unwrap_or_default(),
            store_bytes: int("store_bytes").unwrap_or_default(),
            free_bytes: int("free_bytes"),
            contact_ms: int("contact_ms"),
            addresses: text("addresses").lines().map(str::to_owned).collect(),
            site: text("site"),
            wants: text("wants"),
        }
    }

    /// The write that changes the fields `before` into this state; `None` when they are equal.
    pub fn put_over(&self, before: Option<&BTreeMap<String, Option<Value>>>) -> Option<DraftPut> {
        let mut set = self.fields();
        if let Some(before) = before {
            set.retain(|name, value| before.get(name) != Some(value));
        }
        if before.is_some() && set.is_empty() {
            return None;
        }
        Some(DraftPut {
            key: Self::key(),
            create: before.is_none(),
            set,
            add: BTreeSet::new(),
            remove: BTreeSet::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::core::journal::asset::{DESCRIPTION, asset_key};
    use crate::core::journal::op::Elem;

    const HASH: Hash = Hash([0xab; 32]);
    const DEVICE: NodeId = NodeId([0xcd; 32]);

    #[test]
    fn every_field_of_a_device_is_named() {
        let fields = DeviceState::default().fields();
        assert_eq!(fields.len(), DeviceState::FIELDS.len());
        assert!(DeviceState::FIELDS.iter().all(|name| fields.contains_key(*name)));
    }

    fn events() -> [LogEvent; 12] {
        let (hash, device, name) = (HASH, DEVICE, "desk".to_owned());
        let (alert, what) = ("damaged".to_owned(), "1 asset is damaged".to_owned());
        [
            LogEvent::AssetAdded { hash, size_bytes: 1 << 40 },
            LogEvent::AssetReceived { hash, size_bytes: 0, from: Some(device) },
            LogEvent::AssetTrashed { hash },
            LogEvent::AssetRestored { hash },
            LogEvent::AssetChanged {
                hash,
                fields: BTreeSet::from(["tags".to_owned()]),
                before: Held::from([("tags".to_owned(), serde_json::json!(["x"]))]),
                after: Held::from([("tags".to_owned(), serde_json::json!([]))]),
            },
            LogEvent::DevicePaired {
                device,
                name: name.clone(),
                short_code: Some("1234 5678 9012".into()),
            },
            LogEvent::DeviceRemoved { device, name: name.clone() },
            LogEvent::DeviceConnected { device, name: name.clone() },
            LogEvent::DeviceLost { device, name, reason: Some("timed out".into()) },
            LogEvent::IntegrityAlarm { what: "bad".into(), hash: Some(hash), device: None },
            LogEvent::Alert {
                alert: alert.clone(),
                what: what.clone(),
                device: None,
                raised_ms: 7,
            },
            LogEvent::AlertCleared { alert, what, device: Some(device), raised_ms: 7 },
        ]
    }

    #[test]
    fn events_come_back_from_their_type_and_data() {
        for (event, kind) in events().iter().zip(EVENT_TYPES) {
            assert_eq!(event.kind(), kind);
            assert_eq!(LogEvent::parse(kind, &event.data()).as_ref(), Some(event));
        }
        let received = LogEvent::AssetReceived { hash: HASH, size_bytes: 5, from: None };
        let expected = format!(r#"{{"hash":"{HASH}","size_bytes":5}}"#);
        assert_eq!(String::from_utf8(received.data()).unwrap(), expected);
    }

    #[test]
    fn an_edit_tells_of_the_trash_and_of_the_rest() {
        let elem = |elem: &str| Elem { field: TAGS.into(), elem: elem.into() };
        let mut edit = DraftPut {
            key: asset_key(&HASH),
            create: false,
            set: BTreeMap::from([(TRASHED.to_owned(), Some(Value::Bool(true)))]),
            add: BTreeSet::new(),
            remove: BTreeSet::new(),
        };
        let journal = JournalRow {
            description: Some("a".repeat(5_000)),
            tags: BTreeSet::from(["x".to_owned(), "y".to_owned()]),
            ..JournalRow::default()
        };
        let of_edit = |edit: &DraftPut| LogEvent::of_edit(HASH, edit, &journal);
        assert_eq!(of_edit(&edit), [LogEvent::AssetTrashed { hash: HASH }]);
        edit.set.insert(TRASHED.to_owned(), Some(Value::Bool(false)));
        edit.set.insert(DESCRIPTION.to_owned(), None);
        edit.remove.insert(elem("x"));
        let fields = BTreeSet::from([DESCRIPTION.to_owned(), TAGS.to_owned()]);
        let events = of_edit(&edit);
        assert_eq!(events[0], LogEvent::AssetRestored { hash: HASH });
        let LogEvent::AssetChanged { fields: told, before, after, .. } = &events[1] else {
            panic!("{events:?}")
        };
        assert_eq!(*told, fields);
        let cut = before[DESCRIPTION].as_str().unwrap();
        assert!(cut.chars().count() == HELD_CHARS[0] && cut.ends_with('…'), "{cut}");
        assert_eq!(after[DESCRIPTION], serde_json::Value::Null);
        assert_eq!(
            (&before[TAGS], &after[TAGS]),
            (&serde_json::json!(["x", "y"]), &serde_json::json!(["y"]))
        );
    }

    #[test]
    fn the_longest_edit_still_fits_into_an_event() {
        let text = "\u{10ffff}".repeat(5_000);
        let tags: BTreeSet<String> =
            (0..500).map(|n| format!("{n}{}", "\u{1}".repeat(250))).collect();
        let elem = |tag: &String| Elem { field: TAGS.into(), elem: tag.clone() };
        let mut set = BTreeMap::from([(DESCRIPTION.to_owned(), Some(Value::Text(text.clone())))]);
        for attribute in Attribute::ALL {
            set.insert(attribute.field().to_owned(), Some(Value::Text(text.clone())));
        }
        let (add, remove) = (tags.iter().map(elem).collect(), BTreeSet::new());
        let edit = DraftPut { key: asset_key(&HASH), create: true, set, add, remove };
        let journal = JournalRow { description: Some(text), tags, ..JournalRow::default() };
        let events = LogEvent::of_edit(HASH, &edit, &journal);
        let bytes = events[0].data().len();
        assert!(bytes <= EVENT_DATA_BYTES_MAX, "{bytes}");
    }

    #[test]
    fn events_of_later_versions_and_of_others_are_none_or_read_as_far_as_known() {
        let later = format!(r#"{{"hash":"{HASH}","why":"space"}}"#);
        let read = LogEvent::parse("asset-trashed", later.as_bytes());
        assert_eq!(read, Some(LogEvent::AssetTrashed { hash: HASH }));
        for (kind, data) in [
            ("asset-eaten", later.as_bytes()),
            ("asset-trashed", b"{}"),
            ("asset-trashed", br#"{"hash":"12"}"#),
            ("asset-trashed", b"\xff"),
            ("", b""),
        ] {
            assert_eq!(LogEvent::parse(kind, data), None, "{kind}");
        }
    }

    #[test]
    fn a_state_comes_back_from_its_record_and_only_changes_are_written() {
        let state = DeviceState {
            name: "desk".into(),
            platform: "linux-x86_64".into(),
            version: "1".into(),
            store_assets: 3,
            store_bytes: 4,
            free_bytes: Some(5),
            contact_ms: None,
            addresses: BTreeSet::from(["a:1".to_owned(), "b:2".to_owned()]),
            site: "home".into(),
            wants: "tag=a".into(),
        };
        let fields = state.fields();
        assert_eq!(DeviceState::from_fields(&fields), state);
        assert_eq!(DeviceState::from_fields(&BTreeMap::new()), DeviceState::default());
        assert!(state.put_over(None).unwrap().create);
        assert_eq!(state.put_over(Some(&fields)), None);
        let renamed = DeviceState { name: "lap".into(), ..state };
        let put = renamed.put_over(Some(&fields)).unwrap();
        assert!(!put.create && put.set.keys().eq(["name"]));
    }
}
