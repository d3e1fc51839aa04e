//! `journal`: looking after the journal itself.

use clap::Subcommand;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{bytes, shown};
use super::time::utc;
use crate::api::answers::{Findings, JournalStats, RebasedOps};
use crate::api::requests::NoArguments;

/// The commands of `can-sync journal`.
#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Check the journal's consistency; exit status 1 when something is wrong
    Fsck,
    /// Write again, with the current time, what this device wrote while its clock was ahead
    Rebase,
    /// Show the journal in numbers
    Stats,
}

/// `can-sync journal`
pub(crate) async fn journal(
    client: &Client,
    command: JournalCommand,
    output: Output,
) -> Result<Exit, Failure> {
    match command {
        JournalCommand::Fsck => fsck(client, output).await,
        JournalCommand::Rebase => {
            let done: RebasedOps =
                client.post(&["v1", "journal", "rebase"], &NoArguments {}).await?;
            output.value(&done, |done| format!("{} ops rewritten", done.ops))?;
            Ok(Exit::Ok)
        }
        JournalCommand::Stats => {
            let stats: JournalStats = client.get(&["v1", "journal", "stats"], &[]).await?;
            output.value(&stats, stats_text)?;
            Ok(Exit::Ok)
        }
    }
}

async fn fsck(client: &Client, output: Output) -> Result<Exit, Failure> {
    // The whole journal is read and verified, so there is no deadline.
    let found: Findings =
        client.post_unhurried(&["v1", "journal", "fsck"], &NoArguments {}).await?;
    if output.json {
        output.json(&found)?;
    } else {
        output.values(&found.findings, |finding| shown(finding))?;
    }
    if found.findings.is_empty() {
        output.note("The journal is well.");
        return Ok(Exit::Ok);
    }
    let count = found.findings.len();
    Err(Failure::new(Exit::Error, format!("the journal is not well, findings: {count}")))
}

fn stats_text(stats: &JournalStats) -> String {
    let mut lines = vec![
        format!("ops     {} live, {}", stats.live_ops, bytes(stats.live_bytes)),
        format!("cells   {}, {}", stats.cells, bytes(stats.cell_bytes)),
        format!("events  {}", stats.events),
        format!("newest  {}", utc(stats.newest_ms)),
    ];
    if stats.opaque_ops > 0 {
        lines.push(format!("unread  {} ops of a newer version of can-sync", stats.opaque_ops));
    }
    for log in &stats.logs {
        let mut line = format!(
            "log     {}  of {}  up to {}, {} ops held",
            log.log,
            log.author.short(),
            log.seq,
            log.ops
        );
        if log.open {
            line.push_str("  (written here)");
        }
        if log.forked {
            line.push_str("  FORKED");
        }
        lines.push(line);
    }
    lines.join("\n")
}
