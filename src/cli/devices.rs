//! `devices`: the devices of the group, with what each reports about itself and how it is connected.
//! Also finds the device that an argument names.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::pairing::state_name;
use super::text::{bytes, counted, duration, shown};
use crate::api::answers::{Member, Members, Record, RecordsPage};
use crate::clock::wall_ms;
use crate::core::ids::NodeId;
use crate::core::journal::device_events::DEVICE_MODEL;
use crate::core::lookup;

/// Records asked for at once; a group has fewer devices.
const PAGE_RECORDS: &str = "1000";

/// A device.
#[derive(Debug, Serialize)]
pub(crate) struct Device {
    pub(crate) node_id: NodeId,
    pub(crate) name: String,
    this_device: bool,
    /// The connection; `None` for this device.
    connection: Option<&'static str>,
    in_sync: Option<bool>,
    /// Age of the report that follows, by the clock of the device that wrote it.
    age_ms: Option<u64>,
    addresses: Vec<String>,
    #[serde(flatten)]
    told: Told,
}

/// What a device reports about itself.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Told {
    #[serde(skip_serializing)]
    name: String,
    platform: String,
    version: String,
    store_assets: Option<u64>,
    store_bytes: Option<u64>,
    free_bytes: Option<u64>,
    contact_ms: Option<u64>,
    /// One address a line.
    #[serde(skip_serializing)]
    addresses: String,
}

impl Device {
    /// A device of which only this is known.
    fn named(node_id: NodeId, name: String) -> Self {
        Self {
            node_id,
            name,
            this_device: false,
            connection: None,
            in_sync: None,
            age_ms: None,
            addresses: Vec::new(),
            told: Told::default(),
        }
    }
}

/// `can-sync devices`
pub(crate) async fn devices(client: &Client, output: Output) -> Result<Exit, Failure> {
    output.values(&all(client).await?, line)?;
    Ok(Exit::Ok)
}

/// This device, then the others by name.
pub(crate) async fn all(client: &Client) -> Result<Vec<Device>, Failure> {
    let status = client.status().await?;
    let Members { members } = client.get(&["v1", "members"], &[]).await?;
    let query = [("owner", "any"), ("limit", PAGE_RECORDS)];
    let RecordsPage { records, .. } = client.get(&["v1", "own", DEVICE_MODEL], &query).await?;

    let mut devices: BTreeMap<NodeId, Device> = BTreeMap::new();
    for Member { device, name, .. } in members.into_iter().filter(|member| member.member) {
        devices.insert(device, Device::named(device, name));
    }
    for peer in &status.peers {
        let device = devices
            .entry(peer.node_id)
            .or_insert_with(|| Device::named(peer.node_id, String::new()));
        device.name.clone_from(&peer.name);
        device.connection = Some(state_name(peer.state));
        device.in_sync = Some(peer.in_sync && status.has_same_edits(peer));
    }
    let me = status.device.node_id;
    let here = devices.entry(me).or_insert_with(|| Device::named(me, String::new()));
    here.name = status.device.name;
    here.this_device = true;
    let now_ms = wall_ms();
    for Record { owner, fields, changed_ms, .. } in records {
        let device = owner.and_then(|owner| devices.get_mut(&owner));
        // A record of another version that this one cannot read is ignored.
        let told = serde_json::from_value::<Told>(Json::Object(fields.into_iter().collect()));
        if let (Some(device), Ok(fields)) = (device, told) {
            if !device.this_device && !fields.name.is_empty() {
                device.name.clone_from(&fields.name);
            }
            device.age_ms = Some(now_ms.saturating_sub(changed_ms));
            device.addresses = fields.addresses.lines().map(str::to_owned).collect();
            device.told = fields;
        }
    }
    let mut devices: Vec<_> = devices.into_values().collect();
    devices.sort_by(|a, b| (!a.this_device, &a.name).cmp(&(!b.this_device, &b.name)));
    Ok(devices)
}

/// The node ID of the device that `text` names. A device that is not in the group is named by its
/// whole node ID.
pub(crate) fn node_id(devices: &[Device], text: &str) -> Result<NodeId, Failure> {
    if let Ok(node_id) = text.parse() {
        return Ok(node_id);
    }
    let found = lookup::device(text, devices, |device| (device.node_id, &device.name));
    Ok(found?.node_id)
}

fn line(device: &Device) -> String {
    let connection = device.connection.unwrap_or(match device.this_device {
        true => "this device",
        false => "unknown",
    });
    let mut parts = vec![device.node_id.to_string(), shown(&device.name), connection.to_owned()];
    parts.extend(device.in_sync.filter(|in_sync| *in_sync).map(|_| "in sync".to_owned()));
    let Told { platform, version, store_assets, free_bytes, .. } = &device.told;
    parts.extend([platform, version].into_iter().filter(|t| !t.is_empty()).map(|t| shown(t)));
    parts.extend(store_assets.map(|count| counted(count, "asset", "assets")));
    parts.extend(free_bytes.map(|free| format!("{} free", bytes(free))));
    let age = device.age_ms.map(Duration::from_millis);
    parts.extend(age.map(|age| format!("told {} ago", duration(age))));
    parts.join("  ")
}
