//! The report for a bug tracker: the checks, the status and the journal in numbers, without names,
//! keys, tokens and addresses.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::redact::Redactor;
use crate::api::answers::JournalStats;
use crate::cli::client::Client;
use crate::cli::devices;
use crate::cli::exit::Failure;
use crate::clock::wall_ms;
use crate::core::doctor::Check;
use crate::core::units::utc;
use crate::folders::status::FoldersPage;
use crate::replica::status::Status;
use crate::state::home::Home;

/// Gathers the report, redacted.
pub(super) async fn gather(
    client: Option<&Client>,
    home: Option<&Home>,
    checks: &[Check],
) -> Result<Value, Failure> {
    let mut redactor = Redactor::default();
    if let Some(home) = home {
        for path in [home.state_dir().to_owned(), home.store_dir()] {
            redactor.hide(&path.display().to_string(), "<home>");
        }
    }
    for (name, by) in [("HOME", "<home>"), ("USER", "<user>"), ("LOGNAME", "<user>")] {
        redactor.hide(&std::env::var(name).unwrap_or_default(), by);
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    redactor.hide(&host, "<host>");
    let (mut status, mut journal) = (None, None);
    if let Some(client) = client {
        let told: Status = client.status().await?;
        let devices = devices::all(client).await?;
        for (number, device) in devices.iter().enumerate() {
            let by = format!("device-{}", number + 1);
            redactor.hide(&device.name, &by);
            redactor.hide(&device.node_id.to_string(), &by);
            redactor.hide(&device.node_id.short(), &by);
        }
        let folders: FoldersPage = client.get(&["v1", "folders"], &[]).await?;
        for (number, folder) in folders.folders.iter().enumerate() {
            let by = format!("folder-{}", number + 1);
            redactor.hide(&folder.name, &by);
            if let Some(binding) = &folder.binding {
                redactor.hide(&binding.dir, "<path>");
            }
        }
        let stats: JournalStats = client.get(&["v1", "journal", "stats"], &[]).await?;
        (status, journal) = (Some(told), Some(stats));
    }
    let report = json!({
        "made": utc(wall_ms()),
        "version": env!("CARGO_PKG_VERSION"),
        "platform": format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        "kernel": rustix::system::uname().release().to_string_lossy(),
        "checks": checks,
        "status": status,
        "journal": journal,
    });
    Ok(redactor.value(report))
}

/// Writes the report into a new file that only this user can read.
pub(super) fn write(path: &Path, report: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report).context("writing the report as JSON")?;
    let made = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    made.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    })
    .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}
