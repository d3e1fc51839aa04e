//! Properties that clients put on files and directories (RFC 4918, "dead properties"). They are
//! records of the journal, so they stay, and other devices see them.
//!
//! Each path has one record, under the id of its version, and in it a field for each property.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use dav_server::fs::DavProp;
use serde::{Deserialize, Serialize};

use crate::core::folder::file_id;
use crate::core::folder::path::FolderPath;
use crate::core::ids::FolderId;
use crate::core::journal::draft::{Draft, DraftChange, DraftPut};
use crate::core::journal::op::{Key, Value};
use crate::replica::journal::JournalHandle;
use crate::state::journal::Owner;

/// The model of the records.
const MODEL: &str = "dav-properties";

/// The most properties of one path. Each op may write 64 fields.
const PROPERTIES_MAX: usize = 60;

/// The largest property, with its name: within what the journal takes as one value.
const PROPERTY_BYTES_MAX: usize = 8 * 1024;

/// Where properties are kept. Clones share it.
#[derive(Clone)]
pub(super) struct Properties(JournalHandle);

/// A property as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    name: String,
    prefix: Option<String>,
    namespace: Option<String>,
    xml: String,
}

impl Properties {
    pub(super) fn new(journal: JournalHandle) -> Self {
        Self(journal)
    }

    /// The properties of a path.
    pub(super) async fn of(&self, folder: FolderId, path: &FolderPath) -> Result<Vec<DavProp>> {
        let kept = self.kept(folder, path).await?;
        let shown = kept.into_values().map(|Kept { name, prefix, namespace, xml }| DavProp {
            name,
            prefix,
            namespace,
            xml: Some(xml.into_bytes()),
        });
        Ok(shown.collect())
    }

    async fn kept(&self, folder: FolderId, path: &FolderPath) -> Result<BTreeMap<String, Kept>> {
        let id = file_id(folder, path.key());
        let record = self.0.read(move |reader| reader.record(MODEL, Owner::Shared, &id)).await?;
        let fields = record.map(|record| record.fields).unwrap_or_default();
        let kept = fields.into_iter().filter_map(|(field, value)| {
            let Some(Value::Bytes(bytes)) = value else { return None };
            Some((field, serde_json::from_slice(&bytes).ok()?))
        });
        Ok(kept.collect())
    }

    /// Sets and removes properties. Returns false, and does nothing, when they would be too many or
    /// too large.
    pub(super) async fn patch(
        &self,
        folder: FolderId,
        path: &FolderPath,
        patch: &[(bool, DavProp)],
    ) -> Result<bool> {
        let kept = self.kept(folder, path).await?;
        let mut names: BTreeSet<String> = kept.keys().cloned().collect();
        let mut set = BTreeMap::new();
        for (is_set, property) in patch {
            let field = field(property);
            let value = match (is_set, &property.xml) {
                (true, Some(xml)) => {
                    let DavProp { name, prefix, namespace, .. } = property.clone();
                    let xml = String::from_utf8_lossy(xml).into_owned();
                    let kept = Kept { name, prefix, namespace, xml };
                    names.insert(field.clone());
                    Some(Value::Bytes(serde_json::to_vec(&kept).context("writing a property")?))
                }
                _ => {
                    names.remove(&field);
                    None
                }
            };
            set.insert(field, value);
        }
        let is_large = |value: &Option<Value>| matches!(value, Some(Value::Bytes(bytes)) if bytes.len() > PROPERTY_BYTES_MAX);
        if names.len() > PROPERTIES_MAX || set.len() > PROPERTIES_MAX || set.values().any(is_large)
        {
            return Ok(false);
        }
        self.write(folder, path, set).await?;
        Ok(true)
    }

    /// Gives a path the properties of another.
    pub(super) async fn copy(
        &self,
        (from, from_path): (FolderId, &FolderPath),
        (to, to_path): (FolderId, &FolderPath),
    ) -> Result<()> {
        let kept = self.kept(from, from_path).await?;
        let mut set = BTreeMap::new();
        for (field, kept) in kept {
            let bytes = serde_json::to_vec(&kept).context("writing a property")?;
            set.insert(field, Some(Value::Bytes(bytes)));
        }
        for field in self.kept(to, to_path).await?.into_keys() {
            set.entry(field).or_insert(None);
        }
        self.write(to, to_path, set).await
    }

    /// Removes the properties of a path.
    pub(super) async fn remove(&self, folder: FolderId, path: &FolderPath) -> Result<()> {
        let gone = self.kept(folder, path).await?;
        self.write(folder, path, gone.into_keys().map(|field| (field, None)).collect()).await
    }

    async fn write(
        &self,
        folder: FolderId,
        path: &FolderPath,
        set: BTreeMap<String, Option<Value>>,
    ) -> Result<()> {
        let mut set = set.into_iter().peekable();
        // Some properties of 8 KiB are more than one op may hold.
        while set.peek().is_some() {
            let set = set.by_ref().take(6).collect();
            let id = file_id(folder, path.key()).to_vec();
            let key = Key { model: MODEL.into(), id, owned: false };
            let (add, remove) = (BTreeSet::new(), BTreeSet::new());
            let put = DraftPut { key, create: true, set, add, remove };
            let draft = Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() };
            self.0.write(draft).await??;
        }
        Ok(())
    }
}

/// The field of a property: its namespace and name, which may be longer than a field's name.
fn field(property: &DavProp) -> String {
    let mut hasher = blake3::Hasher::new();
    let namespace = property.namespace.as_deref().unwrap_or_default();
    hasher.update(&(namespace.len() as u64).to_le_bytes());
    hasher.update(namespace.as_bytes()).update(property.name.as_bytes());
    data_encoding::HEXLOWER.encode(&hasher.finalize().as_bytes()[..16])
}
