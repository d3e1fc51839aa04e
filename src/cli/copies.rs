//! `want`, `copies`, `sites` and `site`: which contents come to this device, and how many copies the
//! group wants. Also the lines of `info` about which devices hold an asset.

use std::time::Duration;

use clap::Args;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{bytes, counted, duration, shown};
use crate::api::copies::{
    GoalReply, GoalRequest, Holders, SiteRequest, WantReply, WantRequest, WantView,
};
use crate::clock::wall_ms;
use crate::core::expression::Expression;
use crate::core::ids::Hash;

/// The word for an expression that every asset fits.
const ALL: &str = "all";

/// The arguments of `can-sync want`.
#[derive(Debug, Args)]
pub(crate) struct WantArgs {
    /// Which contents come to this device: `all`, or an expression of tag=, type=image/*,
    /// name=*.raw, folder=, added-by=, size>1G, age<90d and copies<2, joined by `and`, `or`, `not`
    /// and parentheses [default: only show it]
    #[arg(value_name = "EXPRESSION", required_if_eq("dry_run", "true"))]
    expression: Option<String>,
    /// Only say what would come, and what would not be wanted any more
    #[arg(long)]
    dry_run: bool,
}

/// `can-sync want`
pub(crate) async fn want(client: &Client, args: WantArgs, output: Output) -> Result<Exit, Failure> {
    let Some(text) = args.expression else {
        let view: WantView = client.get(&["v1", "want"], &[]).await?;
        output.value(&view, |view| shown(view.expression.as_deref().unwrap_or(ALL)))?;
        return Ok(Exit::Ok);
    };
    let expression = match text.trim() {
        ALL => None,
        text => {
            Expression::parse(text).map_err(|error| Failure::new(Exit::Usage, error))?;
            Some(text.to_owned())
        }
    };
    let request = WantRequest { expression, dry_run: args.dry_run };
    let reply: WantReply = client.post_unhurried(&["v1", "want"], &request).await?;
    output.value(&reply, |reply| change_text(reply, args.dry_run))?;
    Ok(Exit::Ok)
}

fn change_text(reply: &WantReply, is_dry_run: bool) -> String {
    let change = &reply.change;
    let verb = if is_dry_run { "would be wanted" } else { "are wanted" };
    let mut lines = vec![format!(
        "{}: {} known assets {verb} here.",
        shown(reply.expression.as_deref().unwrap_or(ALL)),
        change.wanted
    )];
    let size = bytes(change.come_bytes);
    let unknown = match change.come_unknown {
        0 => String::new(),
        count => format!(" and {count} of unknown size"),
    };
    lines.push(format!("come: {}, {size}{unknown}", counted(change.come, "asset", "assets")));
    if change.stop > 0 {
        lines.push(format!("no longer awaited: {}", counted(change.stop, "asset", "assets")));
    }
    if change.go > 0 {
        lines.push(format!(
            "no longer wanted: {}, {}, which are here and stay here. Nothing is deleted; only \
             `can-sync evict` does that",
            counted(change.go, "asset", "assets"),
            bytes(change.go_bytes)
        ));
    }
    lines.join("\n")
}

/// `can-sync copies` and `can-sync sites`
pub(crate) async fn goal(
    client: &Client,
    request: GoalRequest,
    output: Output,
) -> Result<Exit, Failure> {
    let reply: GoalReply = client.post(&["v1", "copies"], &request).await?;
    output.value(&reply, |reply| {
        let (copies, sites) = (reply.copies, sites(reply.sites));
        format!("The group wants {copies} copies of each asset, on {sites}.")
    })?;
    Ok(Exit::Ok)
}

/// `can-sync site`
pub(crate) async fn site(
    client: &Client,
    label: Option<String>,
    output: Output,
) -> Result<Exit, Failure> {
    let site = match label {
        Some(site) => client.post(&["v1", "site"], &SiteRequest { site }).await?,
        None => SiteRequest { site: client.status().await?.copies.site },
    };
    output.value(&site, |view| match view.site.is_empty() {
        true => "This device is a site of its own.".to_owned(),
        false => format!("This device is on site {}.", shown(&view.site)),
    })?;
    Ok(Exit::Ok)
}

fn sites(count: u64) -> String {
    match count {
        1 => "1 site".to_owned(),
        _ => format!("{count} sites"),
    }
}

/// Who holds an asset.
pub(super) async fn holders(client: &Client, hash: &Hash) -> Result<Holders, Failure> {
    client.get(&["v1", "assets", &hash.to_string(), "holders"], &[]).await
}

/// The lines of `info` about them.
pub(super) fn holder_lines(holders: &Holders) -> String {
    let now_ms = wall_ms();
    let (copies, sites) = (holders.copies, sites(holders.sites));
    let mut lines = vec![format!("{:<12} {copies} known, on {sites}", "copies")];
    let here = match (holders.here, holders.unwanted) {
        (true, _) => "this device",
        (false, true) => "not on this device, which does not want it",
        (false, false) => "not on this device",
    };
    lines.push(format!("{:<12} {here}", ""));
    for holder in &holders.holders {
        let site = match holder.site.as_str() {
            "" => String::new(),
            site => format!(" ({})", shown(site)),
        };
        let age = Duration::from_millis(now_ms.saturating_sub(holder.confirmed_ms));
        let when = match holder.now {
            true => "now".to_owned(),
            false => format!("told {} ago", duration(age)),
        };
        lines.push(format!("{:<12} {}{site}, {when}", "", shown(&holder.name)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::copies::WantChange;

    #[test]
    fn a_narrower_expression_says_that_nothing_is_deleted() {
        let change = WantChange { go: 3, go_bytes: 2048, wanted: 7, ..WantChange::default() };
        let reply = WantReply { expression: Some("tag=a".into()), change };
        let text = change_text(&reply, false);
        assert!(text.starts_with("tag=a: 7 known assets are wanted here."), "{text}");
        assert!(text.contains("3 assets, 2.0 KiB, which are here and stay here"), "{text}");
        assert!(text.contains("Nothing is deleted") && text.contains("evict"), "{text}");
        let all = change_text(&WantReply { expression: None, change }, true);
        assert!(all.starts_with("all: 7 known assets would be wanted here."), "{all}");
    }
}
