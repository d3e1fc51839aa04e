//! The attributes of an asset: what the device that added it knew about the file, such as its name.
//! They travel with the asset's metadata, so that a file has its name on every device.
//!
//! T1  A value is in canonical form, within its bound and never empty. A value that is not is left
//!     out: it comes from another device or another program, and must not stop the asset.
//! T2  A name has no `/` and is neither `.` nor `..`, and a path is relative and has no `.`, `..` or empty component. That makes
//!     neither safe as a file name: see [`crate::core::export_name`].

use std::collections::BTreeMap;

use unicode_normalization::UnicodeNormalization;

use crate::core::limits::{
    AGENT_TEXT_BYTES_MAX, ASSET_NAME_BYTES_MAX, ASSET_PATH_BYTES_MAX, MEDIA_TYPE_BYTES_MAX,
    TIME_MS_MAX, TIME_MS_MIN,
};

/// The application of assets that were added without one, by a command or over the API. The contents of
/// shared folders have none: so it is known which assets were added for themselves.
pub const ADDED_APPLICATION: &str = "can-sync";

/// One attribute of an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attribute {
    /// The file's name, without folders.
    Name,
    /// The folder it was added from, relative to what was given, with `/` between components.
    Path,
    /// The media type of the content, such as `image/jpeg`.
    MediaType,
    /// When the file was last modified, ms since the Unix epoch.
    ModifiedMs,
    /// When a picture was taken, ms since the Unix epoch.
    CapturedMs,
    /// The program that the content comes from.
    Application,
    /// The user of that program.
    User,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttributeValue {
    /// Text, of the attributes that are none of time.
    Text(String),
    /// Milliseconds since the Unix epoch; negative before 1970.
    TimeMs(i64),
}

/// The attributes that are known of an asset.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attributes(BTreeMap<Attribute, AttributeValue>);

impl Attribute {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Name,
        Self::Path,
        Self::MediaType,
        Self::ModifiedMs,
        Self::CapturedMs,
        Self::Application,
        Self::User,
    ];

    /// The attribute's field in the asset's record of the journal.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Path => "path",
            Self::MediaType => "media_type",
            Self::ModifiedMs => "modified_ms",
            Self::CapturedMs => "captured_ms",
            Self::Application => "application",
            Self::User => "user",
        }
    }

    /// The attribute of a field.
    pub fn of_field(field: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attribute| attribute.field() == field)
    }

    /// Whether the attribute is a time.
    pub const fn is_time(self) -> bool {
        matches!(self, Self::ModifiedMs | Self::CapturedMs)
    }

    /// The most bytes of its text.
    pub const fn bytes_max(self) -> usize {
        match self {
            Self::Name => ASSET_NAME_BYTES_MAX,
            Self::Path => ASSET_PATH_BYTES_MAX,
            Self::MediaType => MEDIA_TYPE_BYTES_MAX,
            Self::Application | Self::User => AGENT_TEXT_BYTES_MAX,
            Self::ModifiedMs | Self::CapturedMs => 0,
        }
    }

    /// The value in canonical form; `None` if it is empty, of the wrong kind or out of bounds.
    pub fn fit(self, value: AttributeValue) -> Option<AttributeValue> {
        match value {
            AttributeValue::Text(text) if !self.is_time() => {
                let text = self.canonical(&text);
                let fits = (1..=self.bytes_max()).contains(&text.len());
                fits.then_some(AttributeValue::Text(text))
            }
            AttributeValue::TimeMs(ms) if self.is_time() => {
                let fits = (TIME_MS_MIN..=TIME_MS_MAX).contains(&ms);
                fits.then_some(AttributeValue::TimeMs(ms))
            }
            _ => None,
        }
    }

    fn canonical(self, text: &str) -> String {
        match self {
            Self::Name => {
                let name = canonical_text(text.rsplit('/').next().unwrap_or_default());
                if is_component(&name) { name } else { String::new() }
            }
            Self::Path => {
                let components = text.split('/').map(canonical_text);
                components.filter(|text| is_component(text)).collect::<Vec<_>>().join("/")
            }
            _ => canonical_text(text),
        }
    }
}

/// Whether a text names a file or a folder, and not where one is already.
fn is_component(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
}

/// The form in which texts are compared and written: trimmed, and composed (Unicode NFC, UAX #15),
/// because keyboards and file systems produce the same letter in several encodings.
pub fn canonical_text(text: &str) -> String {
    text.trim().nfc().collect()
}

impl Attributes {
    /// The attributes of a file of which only the name is known.
    pub fn named(name: &str) -> Self {
        Self::default().with_text(Attribute::Name, name)
    }

    /// These and a text; an attribute of that kind is replaced.
    pub fn with_text(mut self, attribute: Attribute, text: &str) -> Self {
        self.set(attribute, Some(AttributeValue::Text(text.to_owned())));
        self
    }

    /// These attributes with `attribute` set to a time, or without it if the time is unknown.
    pub fn with_time(mut self, attribute: Attribute, time_ms: Option<i64>) -> Self {
        self.set(attribute, time_ms.map(AttributeValue::TimeMs));
        self
    }

    /// Sets or removes an attribute. A value that does not fit removes it.
    pub fn set(&mut self, attribute: Attribute, value: Option<AttributeValue>) {
        match value.and_then(|value| attribute.fit(value)) {
            Some(value) => self.0.insert(attribute, value),
            None => self.0.remove(&attribute),
        };
    }

    /// Sets the attributes of `others` that are not known here.
    pub fn fill(&mut self, others: Self) {
        for (attribute, value) in others.0 {
            self.0.entry(attribute).or_insert(value);
        }
    }

    /// The value of an attribute, if it is known.
    pub fn get(&self, attribute: Attribute) -> Option<&AttributeValue> {
        self.0.get(&attribute)
    }

    /// The text of an attribute; empty when it is not known.
    pub fn text(&self, attribute: Attribute) -> &str {
        match self.get(attribute) {
            Some(AttributeValue::Text(text)) => text,
            _ => "",
        }
    }

    /// The time of an attribute, ms since the Unix epoch.
    pub fn time_ms(&self, attribute: Attribute) -> Option<i64> {
        match self.get(attribute) {
            Some(AttributeValue::TimeMs(ms)) => Some(*ms),
            _ => None,
        }
    }

    /// The file's name; empty when it is not known.
    pub fn name(&self) -> &str {
        self.text(Attribute::Name)
    }

    /// The folder it was added from; empty when it is not known.
    pub fn path(&self) -> &str {
        self.text(Attribute::Path)
    }

    /// The media type; empty when it is not known.
    pub fn media_type(&self) -> &str {
        self.text(Attribute::MediaType)
    }

    /// All that are known, in the order of [`Attribute::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Attribute, &AttributeValue)> {
        self.0.iter().map(|(attribute, value)| (*attribute, value))
    }

    /// The bytes of all texts.
    pub fn text_bytes(&self) -> usize {
        let texts = self.0.values().map(|value| match value {
            AttributeValue::Text(text) => text.len(),
            AttributeValue::TimeMs(_) => 0,
        });
        texts.sum()
    }
}

impl FromIterator<(Attribute, AttributeValue)> for Attributes {
    fn from_iter<I: IntoIterator<Item = (Attribute, AttributeValue)>>(values: I) -> Self {
        let mut attributes = Self::default();
        for (attribute, value) in values {
            attributes.set(attribute, Some(value));
        }
        attributes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_of_an_attribute_is_at_its_limit_and_not_beyond() {
        for attribute in Attribute::ALL {
            if attribute.is_time() {
                for (ms, fits) in [
                    (TIME_MS_MIN, true),
                    (TIME_MS_MIN - 1, false),
                    (TIME_MS_MAX, true),
                    (TIME_MS_MAX + 1, false),
                ] {
                    assert_eq!(attribute.fit(AttributeValue::TimeMs(ms)).is_some(), fits, "{ms}");
                }
                assert_eq!(attribute.fit(AttributeValue::Text("1".into())), None);
            } else {
                for (bytes, fits) in [(0, false), (1, true)]
                    .into_iter()
                    .chain([(attribute.bytes_max(), true), (attribute.bytes_max() + 1, false)])
                {
                    let text = AttributeValue::Text("x".repeat(bytes));
                    assert_eq!(attribute.fit(text).is_some(), fits, "{attribute:?} {bytes}");
                }
                assert_eq!(attribute.fit(AttributeValue::TimeMs(1)), None);
            }
        }
    }

    #[test]
    fn a_name_has_no_folder_and_a_path_leads_nowhere_else() {
        for (name, kept) in
            [("a.txt", "a.txt"), ("../a.txt", "a.txt"), ("x/", ""), (" b ", "b"), ("a/..", "")]
        {
            assert_eq!(Attributes::named(name).name(), kept, "{name}");
        }
        for (path, kept) in [
            ("pictures/2024", "pictures/2024"),
            ("/etc//x/", "etc/x"),
            ("../../x/./y/..", "x/y"),
            ("..", ""),
        ] {
            let attributes = Attributes::default().with_text(Attribute::Path, path);
            assert_eq!(attributes.path(), kept, "{path}");
        }
    }

    #[test]
    fn a_known_attribute_is_kept_when_others_fill_in() {
        let mut mine = Attributes::named("mine");
        let theirs = Attributes::named("theirs").with_time(Attribute::ModifiedMs, Some(-5));
        mine.fill(theirs);
        assert_eq!((mine.name(), mine.time_ms(Attribute::ModifiedMs)), ("mine", Some(-5)));
    }

    #[test]
    fn a_field_names_its_attribute() {
        for attribute in Attribute::ALL {
            assert_eq!(Attribute::of_field(attribute.field()), Some(attribute));
        }
        assert_eq!(Attribute::of_field("description"), None);
    }
}
