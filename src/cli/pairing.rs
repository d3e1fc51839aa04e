//! `ticket`, `pair`, `peers`, `remove`, `leave`, `rename`: who is in the group.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::time::sleep;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{duration, parse_duration, shown};
use crate::agent::handle::{
    LeaveReply, PairReply, RemoveReply, RenameReply, RevokeReply, TicketReply,
};
use crate::api::answers::{TicketView, TicketsPage};
use crate::api::requests::{
    ConfirmRequest, NoArguments, RedeemRequest, RenameRequest, TicketRequest,
};
use crate::clock::wall_ms;
use crate::core::pairing::TICKET_USES_MAX;
use crate::net::pairing::COMPARE_DEADLINE;
use crate::net::ticket::Ticket;
use crate::replica::status::{PairingState, PairingStatus, PeerState, PeerStatus, Status};

/// How often a command looks whether there are digits to compare.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// How long a pairing may take from the use of its ticket to its end: a few round trips.
const SETTLED_MS: u64 = 10_000;

/// Many times a ticket with all its addresses.
const TICKET_BYTES_MAX: u64 = 16 * 1024;

/// The arguments of `can-sync ticket`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct TicketArgs {
    #[command(subcommand)]
    command: Option<TicketCommand>,
    /// How long the ticket is good for, at most 7d
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    expires: Duration,
    /// How many devices the ticket lets in
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(TICKET_USES_MAX)))]
    uses: u16,
    /// Also show the ticket as a QR code
    #[arg(long)]
    qr: bool,
    /// Print the ticket as a link, can-sync://pair/...
    #[arg(long)]
    link: bool,
    /// Share nothing before you have compared the digits on both devices; waits for the other one
    #[arg(long)]
    verify: bool,
    /// Wait, and say who joined and the digits, also where the output is no terminal
    #[arg(long)]
    wait: bool,
    /// Do not wait for the other device
    #[arg(long, conflicts_with_all = ["wait", "verify"])]
    no_wait: bool,
}

/// What can be done with the tickets of this device.
#[derive(Debug, Subcommand)]
pub(crate) enum TicketCommand {
    /// List the tickets that still let somebody in
    Ls,
    /// End a ticket before its time
    Revoke {
        /// The ticket's name, as `ticket ls` shows it
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// End all of them
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

/// `can-sync ticket`
pub(crate) async fn ticket(
    client: &Client,
    args: TicketArgs,
    output: Output,
) -> Result<Exit, Failure> {
    match args.command {
        None => make_ticket(client, args, output).await,
        Some(TicketCommand::Ls) => {
            let page: TicketsPage = client.get(&["v1", "tickets"], &[]).await?;
            if page.tickets.is_empty() {
                output.note("No ticket lets anybody in.");
            }
            output.values(&page.tickets, ticket_line)?;
            Ok(Exit::Ok)
        }
        Some(TicketCommand::Revoke { id, all }) => {
            // The agent takes `all` for all, and no ticket is called so: names are hex.
            let id = id.filter(|_| !all).unwrap_or_else(|| "all".into());
            let reply: RevokeReply = client.delete(&["v1", "tickets", &id]).await?;
            output.value(&reply, |reply| match reply.revoked[..] {
                [] => "no ticket was good any more".to_owned(),
                _ => format!("revoked {}", reply.revoked.join(", ")),
            })?;
            Ok(Exit::Ok)
        }
    }
}

fn ticket_line(ticket: &TicketView) -> String {
    let TicketView { id, expires_ms, uses, left, verify, .. } = ticket;
    let time_left = Duration::from_millis(expires_ms.saturating_sub(wall_ms()));
    let verify = if *verify { "  digits are compared" } else { "" };
    format!("{id}  lets in {left} of {uses}  for {}{verify}", duration(time_left))
}

async fn make_ticket(client: &Client, args: TicketArgs, output: Output) -> Result<Exit, Failure> {
    let TicketArgs { expires, uses, qr, link, verify, wait, no_wait, .. } = args;
    let before = paired(&client.status().await?);
    let ttl_ms = u64::try_from(expires.as_millis()).unwrap_or(u64::MAX);
    let request = TicketRequest { ttl_ms: Some(ttl_ms), verify, uses: Some(uses) };
    let reply: TicketReply = client.post(&["v1", "ticket"], &request).await?;
    if qr {
        let code = parse_ticket(&reply.ticket)?.qr();
        output.note(code.unwrap_or_else(|| "The ticket is too long for a QR code.".into()));
    }
    let text = match link {
        true => parse_ticket(&reply.ticket)?.link(),
        false => reply.ticket.clone(),
    };
    output.value(&reply, |_| text)?;
    let left =
        Duration::from_millis(reply.expires_ms).saturating_sub(Duration::from_millis(wall_ms()));
    let good = if uses == 1 { "once".to_owned() } else { format!("for {uses} devices") };
    output.note(format_args!(
        "Good {good}, for {}. Whoever has it can join: run `can-sync pair` on the other device and \
         give it this ticket. `can-sync ticket revoke {}` ends it.",
        duration(left + Duration::from_millis(500)),
        reply.id
    ));
    // A person at a terminal learns of it; a script that only needs the ticket does not wait.
    let waits = verify || wait || (!no_wait && io::stdout().is_terminal() && !output.json);
    match (waits, verify && uses == 1) {
        (false, _) => Ok(Exit::Ok),
        (true, true) => wait_and_compare(client, &reply, output).await,
        (true, false) => wait_for_joiners(client, &reply, before, output).await,
    }
}

/// The digits of the devices that were paired lately.
fn paired(status: &Status) -> BTreeSet<String> {
    let paired = status.pairings.iter().filter(|pairing| pairing.state == PairingState::Paired);
    paired.map(|pairing| pairing.short_code.clone()).collect()
}

/// Prints the devices that join, until the ticket is used up or has expired.
async fn wait_for_joiners(
    client: &Client,
    reply: &TicketReply,
    mut told: BTreeSet<String>,
    output: Output,
) -> Result<Exit, Failure> {
    output.note("Waiting for the other device; Ctrl-C leaves the ticket as it is…");
    let mut compared = Compared::default();
    let mut joined = 0;
    loop {
        // Read before the status, so that the status shows the device that used the ticket last.
        let page: TicketsPage = client.get(&["v1", "tickets"], &[]).await?;
        let is_over = page.tickets.iter().all(|ticket| ticket.id != reply.id);
        compared.look(client, output).await?;
        let status = client.status().await?;
        let is_pairing =
            status.pairings.iter().any(|pairing| pairing.state != PairingState::Paired);
        for pairing in status.pairings {
            if pairing.state == PairingState::Paired && told.insert(pairing.short_code.clone()) {
                joined += 1;
                output.note(format_args!(
                    "paired with {} ({})",
                    shown(&pairing.name),
                    shown(&pairing.short_code)
                ));
            }
        }
        let until_ms = reply.expires_ms + SETTLED_MS;
        match (is_over && !is_pairing, joined >= u32::from(reply.uses)) {
            (_, true) => return Ok(Exit::Ok),
            (true, false) if joined > 0 && wall_ms() > until_ms => return Ok(Exit::Ok),
            (true, false) if wall_ms() > until_ms => {
                let message = "the ticket has expired, and nobody was let in";
                return Err(Failure::new(Exit::Timeout, message));
            }
            // Revoked, or its last user has not finished joining.
            (true, false) if !compared.is_settling(wall_ms()) => {
                let message = "the ticket lets nobody in any more: it was revoked, or a pairing by it \
                               broke off";
                return Err(Failure::new(Exit::Refused, message));
            }
            _ => {}
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Waits for the one joiner of a ticket whose digits have to be compared.
async fn wait_and_compare(
    client: &Client,
    reply: &TicketReply,
    output: Output,
) -> Result<Exit, Failure> {
    output.note("Waiting for the other device, to compare the digits…");
    // A device that joined in the last second may still be comparing.
    let until_ms = reply.expires_ms + u64::try_from(COMPARE_DEADLINE.as_millis()).unwrap_or(0);
    let mut compared = Compared::default();
    loop {
        if let Some(paired) = compared.look(client, output).await? {
            output.note(format_args!(
                "paired with {} ({})",
                shown(&paired.name),
                shown(&paired.short_code)
            ));
            return Ok(Exit::Ok);
        }
        if wall_ms() > if compared.is_under_way() { until_ms } else { reply.expires_ms } {
            return Err(Failure::new(
                Exit::Timeout,
                "the ticket has expired, and nobody was let in",
            ));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// `can-sync pair`
pub(crate) async fn pair(
    client: &Client,
    ticket: Option<String>,
    verify: bool,
    output: Output,
) -> Result<Exit, Failure> {
    let text = match ticket {
        Some(text) => {
            output.note(
                "A ticket on the command line can be read by other users of this machine, and stays in \
                 the shell's history: leave it out, and give it on standard input.",
            );
            text
        }
        None => read_ticket(output)?,
    };
    redeem(client, &text, verify, output).await
}

/// `can-sync pair --ask`, which a click on a link runs in a terminal of its own. Any page or mail may
/// hold a link to a stranger's devices, so the user is asked first, and the digits are compared.
pub(crate) async fn pair_clicked(
    home: Option<PathBuf>,
    link: &str,
    output: Output,
) -> Result<Exit, Failure> {
    if !io::stdin().is_terminal() {
        let message = "`pair --ask` asks on a terminal, and there is none: use `pair --verify`";
        return Err(Failure::new(Exit::Usage, message));
    }
    let paired = async {
        let inviter = parse_ticket(link)?.inviter;
        let client = Client::connect(home).await?;
        output.note(format_args!(
            "The link is an invitation by the device {}. If you accept, its devices and this one have \
             the same assets and folders from then on, and each may change and delete them. Go on only if \
             you made this link yourself, or know who did.\nPair with it? [y/N]",
            inviter.short()
        ));
        if !is_yes(&read_line().await?) {
            return Err(Failure::new(Exit::Refused, "nothing was sent"));
        }
        redeem(&client, link, true, output).await
    };
    let exit = match paired.await {
        Ok(exit) => exit,
        Err(Failure::OutputClosed) => return Err(Failure::OutputClosed),
        Err(Failure::Report(exit, error)) => {
            output.error(format_args!("{error:#}"));
            exit
        }
    };
    // The window closes with this process.
    output.note("Press Enter to close this window.");
    read_line().await?;
    Ok(exit)
}

async fn redeem(
    client: &Client,
    text: &str,
    verify: bool,
    output: Output,
) -> Result<Exit, Failure> {
    // Parsed here first, so that a badly pasted ticket is refused without an agent.
    let ticket = parse_ticket(text)?.to_string();
    output.note("Pairing…");
    let request = RedeemRequest { ticket, verify };
    // Only the agent's deadline applies, because people may have to compare the digits.
    let paired = client.post_unhurried(&["v1", "pair"], &request);
    let reply: PairReply = tokio::select! {
        reply = paired => reply?,
        failed = compare(client, output) => match failed? {},
    };
    output.value(&reply, |reply| {
        format!(
            "paired with {} ({}), devices in the group: {}",
            shown(&reply.name),
            shown(&reply.short_code),
            reply.members
        )
    })?;
    Ok(Exit::Ok)
}

/// `can-sync confirm`
pub(crate) async fn confirm(
    client: &Client,
    digits: Option<&str>,
    output: Output,
) -> Result<Exit, Failure> {
    if let Some(digits) = digits {
        let pairing = say(client, digits, true).await?;
        output.note(format_args!("Confirmed: {} shows the same digits.", shown(&pairing.name)));
        return Ok(Exit::Ok);
    }
    let status = client.status().await?;
    let waits = |pairing: &&PairingStatus| pairing.state == PairingState::Compare;
    let waiting: Vec<_> = status.pairings.iter().filter(waits).cloned().collect();
    if waiting.is_empty() {
        output.note("No pairing waits for its digits to be compared.");
    }
    output.values(&waiting, |pairing| {
        format!("{}  {}  {}", pairing.node_id, shown(&pairing.short_code), shown(&pairing.name))
    })?;
    Ok(Exit::Ok)
}

async fn say(client: &Client, digits: &str, same: bool) -> Result<PairingStatus, Failure> {
    let request = ConfirmRequest { short_code: digits.to_owned(), same };
    client.post(&["v1", "pair", "confirm"], &request).await
}

/// Shows digits that are to be compared, for as long as it is polled.
async fn compare(client: &Client, output: Output) -> Result<Infallible, Failure> {
    let mut compared = Compared::default();
    loop {
        sleep(LOOK_EVERY).await;
        compared.look(client, output).await?;
    }
}

/// The pairings that a command has shown to the user, and those whose digits it asked about.
#[derive(Default)]
struct Compared {
    asked: BTreeSet<String>,
    /// When this command first saw that the ticket admits no further device.
    over_ms: Option<u64>,
}

impl Compared {
    /// Whether a pairing that used the ticket up may still end well. The first call begins the time.
    fn is_settling(&mut self, now_ms: u64) -> bool {
        now_ms <= *self.over_ms.get_or_insert(now_ms) + SETTLED_MS
    }

    fn is_under_way(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Shows the digits of waiting pairings, and on a terminal asks whether they agree. Returns the
    /// last pairing that it asked the user about, once that has ended.
    async fn look(
        &mut self,
        client: &Client,
        output: Output,
    ) -> Result<Option<PairingStatus>, Failure> {
        for pairing in client.status().await?.pairings {
            let code = pairing.short_code.clone();
            match pairing.state {
                PairingState::Compare if self.asked.insert(code.clone()) => {
                    output.note(format_args!(
                        "{} ({}) shows the digits  {}  if nobody stands in between.",
                        shown(&pairing.name),
                        pairing.node_id,
                        shown(&code)
                    ));
                    ask(client, code, output).await?;
                }
                PairingState::Paired if self.asked.contains(&code) => return Ok(Some(pairing)),
                PairingState::Compare | PairingState::Confirmed | PairingState::Paired => {}
            }
        }
        Ok(None)
    }
}

/// Asks on the terminal whether the digits agree. Without a terminal, prints how to confirm them.
async fn ask(client: &Client, code: String, output: Output) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        output
            .note(format_args!("Compare, and confirm with: can-sync confirm \"{}\"", shown(&code)));
        return Ok(());
    }
    output.note("Does the other device show the same? [y/N]");
    let same = is_yes(&read_line().await?);
    say(client, &code, same).await?;
    Ok(())
}

/// The next line of standard input; empty at its end.
async fn read_line() -> Result<String, Failure> {
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    Ok(line.await.context("reading the answer")?.context("reading the answer")?)
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

fn read_ticket(output: Output) -> Result<String, Failure> {
    let stdin = io::stdin();
    let mut text = String::new();
    if stdin.is_terminal() {
        output.note("Paste the ticket:");
        stdin.read_line(&mut text).context("reading the ticket")?;
    } else {
        // To the end of the ticket, not of the input: `ticket | pair` would wait for each other.
        let mut start = stdin.lock().take(TICKET_BYTES_MAX);
        while parse_ticket(&text).is_err()
            && start.read_line(&mut text).context("reading the ticket from standard input")? > 0
        {
        }
    }
    Ok(text)
}

fn parse_ticket(text: &str) -> Result<Ticket, Failure> {
    text.trim().parse().map_err(|error| Failure::new(Exit::Usage, error))
}

/// `can-sync peers`
pub(crate) async fn peers(client: &Client, output: Output) -> Result<Exit, Failure> {
    let status = client.status().await?;
    if status.peers.is_empty() {
        output.note("No other device yet: `can-sync ticket` makes an invitation for one.");
    }
    output.values(&status.peers, peer_line)?;
    Ok(Exit::Ok)
}

fn peer_line(peer: &PeerStatus) -> String {
    let mut line = format!("{}  {}  {}", peer.node_id, state_name(peer.state), shown(&peer.name));
    for (label, told) in [("site", &peer.site), ("wants", &peer.wants)] {
        if !told.is_empty() {
            line.push_str(&format!("  {label} {}", shown(told)));
        }
    }
    line
}

/// The state of a connection in one word.
pub(crate) fn state_name(state: PeerState) -> &'static str {
    match state {
        PeerState::Offline => "offline",
        PeerState::Connecting => "connecting",
        PeerState::Syncing => "syncing",
        PeerState::Idle => "connected",
    }
}

/// `can-sync remove`
pub(crate) async fn remove(
    client: &Client,
    device: &str,
    with_introduced: bool,
    dry_run: bool,
    output: Output,
) -> Result<Exit, Failure> {
    if device.is_empty() {
        return Err(Failure::new(Exit::Usage, "the device's name is empty"));
    }
    let word = |yes: bool| if yes { "true" } else { "false" };
    let query = [("with_introduced", word(with_introduced)), ("dry_run", word(dry_run))];
    let reply: RemoveReply = client.delete_with(&["v1", "peers", device], &query).await?;
    let did = if dry_run { "would remove" } else { "removed" };
    output.value(&reply, |reply| {
        let first = format!("{did} {} ({})", shown(&reply.name), reply.node_id);
        let also = reply.also.iter().map(|gone| {
            let (name, introducer) = (shown(&gone.name), shown(&gone.introducer));
            format!("\nwith it {name} ({}), let in by {introducer}", gone.node_id)
        });
        std::iter::once(first).chain(also).collect()
    })?;
    if dry_run {
        output.note(format_args!("Devices in the group then: {}.", reply.members));
    }
    Ok(Exit::Ok)
}

/// `can-sync leave`
pub(crate) async fn leave(client: &Client, yes: bool, output: Output) -> Result<Exit, Failure> {
    if !yes {
        return Err(Failure::new(
            Exit::Usage,
            "this device would no longer sync with the others, and forget the group's journal; its \
             assets stay. Say `can-sync leave --yes` to do it",
        ));
    }
    let reply: LeaveReply = client.post(&["v1", "leave"], &NoArguments {}).await?;
    output.value(&reply, |reply| match reply.new_device {
        true => "left the group, which had removed this device: start the agent again, and it is \
                 a new one"
            .to_owned(),
        false => "left the group: this device is alone in one of its own".to_owned(),
    })?;
    Ok(Exit::Ok)
}

/// `can-sync rename`
pub(crate) async fn rename(client: &Client, name: &str, output: Output) -> Result<Exit, Failure> {
    let request = RenameRequest { name: name.to_owned() };
    let reply: RenameReply = client.post(&["v1", "rename"], &request).await?;
    if output.json {
        output.json(&reply)?;
    }
    output.note(format_args!("This device is now called {}.", shown(&reply.name)));
    Ok(Exit::Ok)
}
