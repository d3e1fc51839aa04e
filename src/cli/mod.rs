//! The command line: its commands and options. Every command but `up`, `store`, `doctor`, `completions`
//! and `version` is a client of the running agent's API.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

mod add;
mod alerts;
mod assets;
mod client;
mod complete;
mod config;
mod content;
mod copies;
mod dav;
mod devices;
mod doctor;
mod doors;
mod edit;
mod exit;
mod fetch;
mod folder;
mod forget;
mod hooks;
mod journal;
mod log;
mod logging;
mod notify;
mod open;
mod options;
mod output;
mod pairing;
mod picture;
mod proofs;
mod records;
mod service;
mod source;
mod status;
mod text;
mod time;
mod tree;
mod up;
mod verify;
mod walk;
mod why;

use client::Client;
use exit::{Exit, Failure};
use logging::{LogFormat, LogOutput};
use output::Output;
use text::{causes, parse_duration};
use time::{Since, parse_since};

use crate::api::copies::GoalRequest;
use crate::net::LOG_DIRECTIVES;
use crate::thumbnails::child;

/// Keeps the content stores of your devices in step, without a server.
#[derive(Debug, Parser)]
#[command(name = "can-sync", version, max_term_width = 100, propagate_version = false)]
#[command(after_help = "Exit status: 0 done, 1 error, 2 usage, 3 agent not running, 4 unknown \
    device or asset, 5 temporary failure, 6 not in sync, 7 damaged asset, 8 timeout, 9 refused.")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// The folder of the agent's state and store [default: below the XDG state and data folders]
    #[arg(long, global = true, env = "CAN_SYNC_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Print data as JSON, one value a line
    #[arg(long, global = true)]
    json: bool,
    /// No prose, no progress
    #[arg(long, short, global = true)]
    quiet: bool,
    /// How the log is written
    #[arg(
        long,
        global = true,
        env = "CAN_SYNC_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value_t = LogFormat::Text
    )]
    log_format: LogFormat,
    /// Log more; twice for everything
    #[arg(short, long = "verbose", global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground, until SIGTERM or Ctrl-C
    Up(Box<options::UpArgs>),
    /// Run the embedded store alone, without syncing
    Store(options::StoreArgs),
    /// Open the page of the running agent in a browser, signed in
    Open(open::OpenArgs),
    /// Show whether WebDAV is on, which lets other programs read and write the folders; turn it on
    Dav {
        #[command(subcommand)]
        command: Option<dav::DavCommand>,
    },
    /// Make a ticket that lets another device join, once unless said otherwise; list and revoke tickets
    Ticket(pairing::TicketArgs),
    /// Join the group of the device that made a ticket
    Pair {
        /// The ticket; read from standard input when left out, which keeps it out of the process
        /// list and the shell's history
        ticket: Option<String>,
        /// Share nothing before you have compared the digits on both devices
        #[arg(long)]
        verify: bool,
        /// Ask before anything is sent, compare the digits, and stay until Enter: for a link that was
        /// clicked
        #[arg(long, requires = "ticket")]
        ask: bool,
    },
    /// Confirm that a device that is pairing with this one shows the same digits
    Confirm {
        /// The digits that the other device shows; without them, list the pairings that wait
        #[arg(num_args = 0..)]
        digits: Vec<String>,
    },
    /// List the other devices of the group
    Peers,
    /// Put a device out of the group
    Remove {
        /// The device's name, or its node ID or the unique start of that
        device: String,
        /// Also remove the devices that it added
        #[arg(long)]
        with_introduced: bool,
        /// Only say who would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Leave the group: this device is then alone in a new one. If the group removed it, it becomes
    /// a new device
    Leave {
        /// Leave; without this, only show what would happen
        #[arg(long)]
        yes: bool,
    },
    /// Give this device another name
    Rename {
        /// The new name
        name: String,
    },
    /// Add files, and folders with all that is in them
    Add(add::AddArgs),
    /// List assets
    Ls(assets::LsArgs),
    /// Write an asset to a file, or many into a folder
    Get(content::GetArgs),
    /// Wait until assets of other devices are here; `--now` lets them jump the queue
    Fetch(fetch::FetchArgs),
    /// Print an asset's content
    Cat {
        /// The asset's name or hash, or the unique start of either
        asset: String,
    },
    /// Show what is known about an asset
    Info {
        /// The asset's name or hash, or the unique start of either
        asset: String,
    },
    /// Show or set which contents come to this device
    Want(copies::WantArgs),
    /// Show or set how many copies of each asset the group wants
    Copies {
        /// The number of devices
        #[arg(value_parser = clap::value_parser!(u64).range(1..=64))]
        count: Option<u64>,
    },
    /// Show or set on how many sites the group wants copies
    Sites {
        /// The number of sites
        #[arg(value_parser = clap::value_parser!(u64).range(1..=64))]
        count: Option<u64>,
    },
    /// Show or say where this device is: devices of one site may be lost together
    Site {
        /// Such as home, office or cloud; empty for a site of its own
        label: Option<String>,
    },
    /// Put tags on an asset and take tags off it
    Tag(edit::TagArgs),
    /// Describe an asset
    Describe {
        /// The asset's name or hash, or the unique start of either
        asset: String,
        /// The description; empty to take it away
        text: String,
    },
    /// Put an asset into the trash
    Trash {
        /// The asset's name or hash, or the unique start of either
        asset: String,
    },
    /// Bring back an earlier version of a file of a folder; or take an asset out of the trash
    Restore {
        /// The path: of a file in a bound directory, or `FOLDER:PATH`. Or an asset's name or hash, or
        /// the unique start of either
        what: PathBuf,
        /// The number of the version, as `history` shows it [default: what was there before]
        #[arg(long, value_name = "N", conflicts_with = "at")]
        version: Option<u64>,
        /// The version that was there then: `2h`, `7d` or a time such as `2026-01-31T15:04:05Z`
        #[arg(long, value_name = "TIME", value_parser = parse_since)]
        at: Option<Since>,
    },
    /// Share directories: each is kept equal on all devices, with every version of every file
    Folder {
        #[command(subcommand)]
        command: folder::FolderCommand,
    },
    /// Show the versions of a file of a folder
    History(folder::PathArgs),
    /// Show why an asset is, or is not, on each device; or why a file of a folder is as it is here
    Why {
        /// An asset: its hash or name, or the unique start of either. Or a path: of a file in a bound
        /// directory, or `FOLDER:PATH`
        what: PathBuf,
    },
    /// Show what happened, on which device
    Log(log::LogArgs),
    /// Show every device of the group with its latest report about itself
    Devices,
    /// Read and write records that all devices share
    Records(records::RecordsArgs),
    /// Look after the journal
    Journal {
        #[command(subcommand)]
        command: journal::JournalCommand,
    },
    /// Check this machine, its network, the home and the store; says what to do about what is wrong
    Doctor(doctor::DoctorArgs),
    /// Show this device, its store, its peers and what is under way
    Status {
        /// Go on showing until stopped
        #[arg(long)]
        watch: bool,
        /// Only answer whether everything is on every device, with exit status 0 or 6
        #[arg(long, conflicts_with = "watch")]
        check: bool,
    },
    /// Show what needs your attention, and acknowledge it
    Alerts {
        #[command(subcommand)]
        command: Option<alerts::AlertsCommand>,
    },
    /// Show how the hooks of `config.toml` do, and try them
    Hooks {
        #[command(subcommand)]
        command: Option<hooks::HooksCommand>,
    },
    /// Read assets again now, and repair damaged ones from other devices
    Verify(verify::VerifyArgs),
    /// Ask other devices to prove that they hold assets: may the copies here be deleted?
    Safe(proofs::SafeArgs),
    /// Delete copies here, while enough other devices have proven that they keep theirs
    Evict(proofs::EvictArgs),
    /// Wish for the whole group that an asset be forgotten, or take that back
    Forget(forget::ForgetArgs),
    /// Wait until every connected peer holds the same assets and edits as this device
    Wait {
        /// Give up after this long, with exit status 8
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
        /// Wait for this peer alone, connected or not: its name, node ID or the start of it
        #[arg(long, value_name = "DEVICE")]
        peer: Option<String>,
    },
    /// Show, check and change the configuration
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Run the agent in the background, from login or from the start of the machine
    Service {
        #[command(subcommand)]
        command: service::ServiceCommand,
    },
    /// Print the completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print what may stand in place of the last word of a line, for the scripts of `completions`
    #[command(hide = true)]
    CompleteValues {
        /// The line's words, the program first
        #[arg(last = true)]
        words: Vec<String>,
    },
    /// Write the man pages into a folder, for packages
    #[command(hide = true)]
    Man {
        /// The folder
        folder: PathBuf,
    },
    /// Make a thumbnail of the picture on standard input; what the page starts for each
    #[command(hide = true)]
    Thumbnail,
    /// Print the version
    Version,
}

/// Parses the process's arguments, carries the command out and returns its exit status.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { json: cli.global.json, quiet: cli.global.quiet };
    let log = start_logging(&cli, output);
    let ended = carry_out(cli, output);
    if let Some(log) = log {
        log.flush();
    }
    match ended {
        Ok(exit) => exit.into(),
        Err(Failure::OutputClosed) => Exit::Ok.into(),
        Err(Failure::Report(exit, error)) => {
            output.error(causes(&error));
            exit.into()
        }
    }
}

fn carry_out(cli: Cli, output: Output) -> Result<Exit, Failure> {
    if matches!(cli.command, Command::Thumbnail) {
        // No runtime: the process may start no thread.
        child::make().context("making a thumbnail")?;
        return Ok(Exit::Ok);
    }
    let home = cli.global.home;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if !matches!(cli.command, Command::Up(_) | Command::Store(_)) {
        // One thread for uploads: they go on while a slow reader of the output blocks this one.
        runtime.worker_threads(1);
    }
    let runtime = runtime.enable_all().build().context("starting")?;
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Up(args) => up::up(home, *args, output).await,
            Command::Store(args) => up::store(home, args, output).await,
            Command::Open(args) => open::open(&Client::connect(home).await?, args, output).await,
            Command::Dav { command } => {
                dav::dav(&Client::connect(home).await?, command, output).await
            }
            Command::Ticket(args) => {
                pairing::ticket(&Client::connect(home).await?, args, output).await
            }
            Command::Pair { ticket: Some(link), ask: true, .. } => {
                pairing::pair_clicked(home, &link, output).await
            }
            Command::Pair { ticket, verify, ask: _ } => {
                pairing::pair(&Client::connect(home).await?, ticket, verify, output).await
            }
            Command::Confirm { digits } => {
                let digits = (!digits.is_empty()).then(|| digits.join(" "));
                pairing::confirm(&Client::connect(home).await?, digits.as_deref(), output).await
            }
            Command::Peers => pairing::peers(&Client::connect(home).await?, output).await,
            Command::Remove { device, with_introduced, dry_run } => {
                let client = Client::connect(home).await?;
                pairing::remove(&client, &device, with_introduced, dry_run, output).await
            }
            Command::Leave { yes } => {
                pairing::leave(&Client::connect(home).await?, yes, output).await
            }
            Command::Rename { name } => {
                pairing::rename(&Client::connect(home).await?, &name, output).await
            }
            Command::Add(args) => add::add(&Client::connect(home).await?, args, output).await,
            Command::Ls(args) => assets::ls(&Client::connect(home).await?, args, output).await,
            Command::Get(args) => content::get(&Client::connect(home).await?, args, output).await,
            Command::Fetch(args) => fetch::fetch(&Client::connect(home).await?, args, output).await,
            Command::Cat { asset } => {
                content::cat(&Client::connect(home).await?, &asset, output).await
            }
            Command::Info { asset } => {
                assets::info(&Client::connect(home).await?, &asset, output).await
            }
            Command::Want(args) => copies::want(&Client::connect(home).await?, args, output).await,
            Command::Copies { count: copies } => {
                let request = GoalRequest { copies, sites: None };
                copies::goal(&Client::connect(home).await?, request, output).await
            }
            Command::Sites { count: sites } => {
                let request = GoalRequest { copies: None, sites };
                copies::goal(&Client::connect(home).await?, request, output).await
            }
            Command::Site { label } => {
                copies::site(&Client::connect(home).await?, label, output).await
            }
            Command::Tag(args) => edit::tag(&Client::connect(home).await?, args, output).await,
            Command::Describe { asset, text } => {
                edit::describe(&Client::connect(home).await?, &asset, &text, output).await
            }
            Command::Trash { asset } => {
                edit::trash(&Client::connect(home).await?, &asset, true, output).await
            }
            Command::Restore { what, version, at } => {
                let client = Client::connect(home).await?;
                let is_path =
                    version.is_some() || at.is_some() || folder::means_path(&client, &what).await?;
                match what.to_str().filter(|_| !is_path) {
                    Some(asset) => edit::trash(&client, asset, false, output).await,
                    None => folder::restore(&client, &what, version, at, output).await,
                }
            }
            Command::Folder { command } => {
                folder::folder(&Client::connect(home).await?, command, output).await
            }
            Command::History(args) => {
                folder::history(&Client::connect(home).await?, args, output).await
            }
            Command::Why { what } => why::why(&Client::connect(home).await?, &what, output).await,
            Command::Log(args) => log::log(&Client::connect(home).await?, args, output).await,
            Command::Devices => devices::devices(&Client::connect(home).await?, output).await,
            Command::Records(args) => {
                records::records(&Client::connect(home).await?, args, output).await
            }
            Command::Journal { command } => {
                journal::journal(&Client::connect(home).await?, command, output).await
            }
            Command::Doctor(args) => doctor::doctor(home, args, output).await,
            Command::Status { watch, check } => {
                status::status(&Client::connect(home).await?, watch, check, output).await
            }
            Command::Alerts { command } => {
                alerts::alerts(&Client::connect(home).await?, command, output).await
            }
            Command::Hooks { command } => {
                hooks::hooks(&Client::connect(home).await?, command, output).await
            }
            Command::Verify(args) => {
                verify::verify(&Client::connect(home).await?, args, output).await
            }
            Command::Forget(args) => {
                forget::forget(&Client::connect(home).await?, args, output).await
            }
            Command::Safe(args) => proofs::safe(&Client::connect(home).await?, args, output).await,
            Command::Evict(args) => {
                proofs::evict(&Client::connect(home).await?, args, output).await
            }
            Command::Wait { timeout, peer } => {
                status::wait(&Client::connect(home).await?, timeout, peer, output).await
            }
            Command::Config { command } => config::config(home, command, output).await,
            Command::Service { command } => service::service(home, command, output).await,
            Command::Completions { shell } => {
                output.bytes(complete::script(shell, &mut Cli::command()).as_bytes())?;
                Ok(Exit::Ok)
            }
            Command::CompleteValues { words } => {
                complete::values(&Cli::command(), home, words, output).await
            }
            Command::Man { folder } => {
                std::fs::create_dir_all(&folder)
                    .and_then(|()| clap_mangen::generate_to(Cli::command(), &folder))
                    .with_context(|| format!("writing to {}", folder.display()))?;
                Ok(Exit::Ok)
            }
            // Carried out above.
            Command::Thumbnail => Ok(Exit::Ok),
            Command::Version => {
                let version = serde_json::json!({ "version": env!("CARGO_PKG_VERSION") });
                let text = concat!("can-sync ", env!("CARGO_PKG_VERSION")).to_owned();
                output.value(&version, |_| text)?;
                Ok(Exit::Ok)
            }
        }
    });
    // A blocked read of a terminal cannot be cancelled, so it is not waited for.
    runtime.shutdown_background();
    ended
}

/// Starts the log on standard error. `CAN_SYNC_LOG` holds a filter of tracing-subscriber and
/// overrides the options. Without it the network libraries log from `-vv` on.
fn start_logging(cli: &Cli, output: Output) -> Option<LogOutput> {
    let format = cli.global.log_format;
    let log = LogOutput::start(std::io::stderr(), format);
    let log = log.inspect_err(|error| output.error(format_args!("nothing is logged: {error}")));
    let log = log.ok()?;
    let serves = matches!(cli.command, Command::Up(_) | Command::Store(_));
    let default = match cli.global.verbose {
        _ if cli.global.quiet => "error",
        0 if serves => "warn,can_sync=info",
        0 => "error",
        1 => "info,can_sync=debug",
        _ => "debug,can_sync=trace",
    };
    let filter = std::env::var("CAN_SYNC_LOG").ok().and_then(|filter| filter.parse().ok());
    let default = match cli.global.verbose {
        0 | 1 => format!("{default},{}", LOG_DIRECTIVES.join(",")),
        _ => default.to_owned(),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new(default)))
        .with_writer(log.clone())
        .with_ansi(format == LogFormat::Text && std::io::stderr().is_terminal())
        .log_internal_errors(false);
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    Some(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
