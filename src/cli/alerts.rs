//! `alerts`: shows what needs the user's attention, and acknowledges it.

use clap::Subcommand;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::escaped;
use super::time::utc;
use crate::api::alerts::AlertsPage;
use crate::api::requests::NoArguments;
use crate::core::alerts::Alert;

/// The longest text of an alert on a terminal: a few sentences with foreign reasons in them.
const TEXT_CHARS_MAX: usize = 2000;

#[derive(Debug, Subcommand)]
pub(crate) enum AlertsCommand {
    /// Acknowledge alerts: they are not shown first any more, and go when they are mended
    Ack {
        /// Which, as `alerts` and `status` name them; the unique start of the name will do
        #[arg(required_unless_present = "all", value_name = "ALERT")]
        alerts: Vec<String>,
        /// All of them
        #[arg(long, conflicts_with = "alerts")]
        all: bool,
    },
}

/// `can-sync alerts`
pub(crate) async fn alerts(
    client: &Client,
    command: Option<AlertsCommand>,
    output: Output,
) -> Result<Exit, Failure> {
    let Some(AlertsCommand::Ack { alerts, all }) = command else {
        let standing = standing(client).await?;
        if standing.is_empty() {
            output.note("Nothing needs your attention.");
        }
        output.values(&standing, line)?;
        return Ok(Exit::Ok);
    };
    let ids = match all {
        false => alerts,
        true => {
            let open = standing(client).await?.into_iter();
            open.filter(|alert| alert.acked_ms.is_none()).map(|alert| alert.id).collect()
        }
    };
    for id in ids {
        let acked: Alert = client.post(&["v1", "alerts", &id, "ack"], &NoArguments {}).await?;
        output.value(&acked, line)?;
    }
    Ok(Exit::Ok)
}

async fn standing(client: &Client) -> Result<Vec<Alert>, Failure> {
    let page: AlertsPage = client.get(&["v1", "alerts"], &[]).await?;
    Ok(page.alerts)
}

fn line(alert: &Alert) -> String {
    let acked = if alert.acked_ms.is_some() { ", acknowledged" } else { "" };
    format!("{}  since {}{acked}\n  {}", alert.id, utc(alert.since_ms), text(alert))
}

/// The text of an alert as it may be shown on a terminal.
pub(super) fn text(alert: &Alert) -> String {
    escaped(&alert.text, TEXT_CHARS_MAX)
}
