//! `journal`: looking after the journal itself.

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{bytes, shown};
use super::time::utc;

/// What `can-sync journal` can be told.
#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Check the journal against itself; status 1 when something is wrong
    Fsck,
    /// Give what this device wrote while its clock was ahead the time of now
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
            let done: Value = client.post(&["v1", "journal", "rebase"], &json!({})).await?;
            output.value(&done, |done| format!("{} ops written anew", done["ops"]))?;
            Ok(Exit::Ok)
        }
        JournalCommand::Stats => {
            let stats: Value = client.get(&["v1", "journal", "stats"], &[]).await?;
            output.value(&stats, stats_text)?;
            Ok(Exit::Ok)
        }
    }
}

async fn fsck(client: &Client, output: Output) -> Result<Exit, Failure> {
    // The whole journal is read and verified, so there is no deadline.
    let found: Value = client.post_unhurried(&["v1", "journal", "fsck"], &json!({})).await?;
    let findings = found["findings"].as_array().cloned().unwrap_or_default();
    if output.json {
        output.json(&found)?;
    } else {
        output.values(&findings, |finding| shown(finding.as_str().unwrap_or_default()))?;
    }
    if findings.is_empty() {
        output.note("The journal is well.");
        return Ok(Exit::Ok);
    }
    let count = findings.len();
    Err(Failure::new(Exit::Error, format!("the journal is not well, findings: {count}")))
}

fn stats_text(stats: &Value) -> String {
    let number = |name: &str| stats[name].as_u64().unwrap_or_default();
    let mut lines = vec![
        format!("ops     {} live, {}", number("live_ops"), bytes(number("live_bytes"))),
        format!("cells   {}, {}", number("cells"), bytes(number("cell_bytes"))),
        format!("events  {}", number("events")),
        format!("newest  {}", utc(number("newest_ms"))),
    ];
    if number("opaque_ops") > 0 {
        lines.push(format!("unread  {} ops of a newer version", number("opaque_ops")));
    }
    for log in stats["logs"].as_array().into_iter().flatten() {
        let text = |name: &str| shown(log[name].as_str().unwrap_or_default());
        let number = |name: &str| log[name].as_u64().unwrap_or_default();
        let (seq, ops) = (number("seq"), number("ops"));
        let author = text("author");
        let author = author.get(..10).unwrap_or(&author);
        let mut line = format!("log     {}  of {author}  up to {seq}, {ops} ops held", text("log"));
        if log["open"] == true {
            line.push_str("  (written here)");
        }
        if log["forked"] == true {
            line.push_str("  FORKED");
        }
        lines.push(line);
    }
    lines.join("\n")
}
