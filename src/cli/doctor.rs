//! `doctor`: checks this machine, its network, the home and the store, with a running agent and
//! without. What it measures stays on this machine; `--bundle` writes a report without names, keys and
//! addresses, for a bug tracker.

mod bundle;
mod redact;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tokio::task::spawn_blocking;

use super::client::Client;
use super::config;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::escaped;
use crate::api::answers::Checkup;
use crate::clock::wall_ms;
use crate::config::{Layer, Settings};
use crate::core::doctor::{self, Check, Verdict};
use crate::net::Net;
use crate::replica::status::StoreStatus;
use crate::state::checkup;
use crate::state::home::Home;
use crate::store::contract;
use crate::store::http::{HttpStore, Stated};

/// The location of the embedded store.
const EMBEDDED: &str = "embedded";

/// A line names paths and errors of the system.
const LINE_CHARS_MAX: usize = 2_000;

/// Where systemd notes that the clock was set from the network.
const CLOCK_SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// Where systemd's time service is, when it runs.
const CLOCK_SERVICE: &str = "/run/systemd/timesync";

/// The arguments of `can-sync doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Also store a small asset in a foreign store, and put it into its trash
    #[arg(long)]
    write: bool,
    /// Write a report without names, keys and addresses into a new file, for a bug tracker
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
}

/// `can-sync doctor`
pub(crate) async fn doctor(
    home: Option<PathBuf>,
    args: DoctorArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let mut report = Report { output, checks: Vec::new() };
    let found = match Home::find(home.clone()) {
        Ok(found) => found,
        Err(error) => {
            let remedy =
                "do what it names; if others may have read the key, start over as a new device";
            report.add([Check::failed("modes", format!("{error:#}"), remedy)])?;
            return Ok(report.exit());
        }
    };
    report.add([match &found {
        Some(_) => {
            Check::ok("modes", "keys, databases and folders are readable for this user alone")
        }
        None => Check::skipped("modes", "no agent was ever started in this home"),
    }])?;
    let configuration = config::load(home.clone(), Layer::new());
    let settings = match &configuration {
        Ok(configuration) => {
            report.add([Check::ok("config", configuration.path().display().to_string())])?;
            configuration.settings().clone()
        }
        Err(Failure::Report(_, error)) => {
            report.add([Check::failed(
                "config",
                format!("{error:#}"),
                "mend the configuration",
            )])?;
            Settings::default()
        }
        Err(Failure::OutputClosed) => return Err(Failure::OutputClosed),
    };
    report.add([doctor::own_clock(wall_ms(), clock_is_synchronised())])?;
    report.add([doctor::watches(checkup::watches())])?;
    if let Some(home) = &found {
        let home = home.clone();
        let measured = spawn_blocking(move || {
            let mut checks = doctor::disk(&checkup::disk("state", home.state_dir()));
            checks.extend(doctor::disk(&checkup::disk("store", &home.store_dir())));
            checks.extend(checkup::databases(&home));
            checks
        });
        report.add(measured.await.context("measuring the disk")?)?;
    }
    let client = match Client::connect(home).await {
        Ok(client) => Some(client),
        Err(Failure::Report(Exit::NotRunning, _)) => None,
        Err(failure) => return Err(failure),
    };
    let mut in_use = None;
    match &client {
        Some(client) => {
            report.add([Check::ok("agent", "it runs")])?;
            let checkup: Checkup = client.get(&["v1", "checkup"], &[]).await?;
            report.add(checkup.checks)?;
            in_use = Some(client.status().await?.store);
        }
        None => {
            report.add([Check::skipped(
                "agent",
                "it does not run: the network is measured without it",
            )])?;
            report.add(network_without_agent(&settings).await?)?;
        }
    }
    report.add(store_checks(&settings, in_use.as_ref(), args.write).await)?;
    if let Some(path) = args.bundle {
        let bundle = bundle::gather(client.as_ref(), found.as_ref(), &report.checks).await?;
        bundle::write(&path, &bundle)?;
        output.note(format_args!(
            "Wrote {}: look at it before you give it to somebody.",
            path.display()
        ));
    }
    Ok(report.exit())
}

/// The checks so far; each is shown at once.
struct Report {
    output: Output,
    checks: Vec<Check>,
}

impl Report {
    fn add(&mut self, checks: impl IntoIterator<Item = Check>) -> Result<(), Failure> {
        let checks: Vec<Check> = checks.into_iter().collect();
        self.output.values(&checks, line)?;
        self.checks.extend(checks);
        Ok(())
    }

    fn exit(&self) -> Exit {
        let failed = self.checks.iter().any(|check| check.verdict == Verdict::Failed);
        if failed { Exit::Error } else { Exit::Ok }
    }
}

fn line(check: &Check) -> String {
    let verdict = match check.verdict {
        Verdict::Ok => "ok      ",
        Verdict::Skipped => "skipped ",
        Verdict::Warning => "warning ",
        Verdict::Failed => "FAILED  ",
    };
    let found = escaped(&check.found, LINE_CHARS_MAX);
    let remedy = check.remedy.as_ref().map(|text| escaped(text, LINE_CHARS_MAX));
    let remedy = remedy.map_or(String::new(), |text| format!("\n        -> {text}"));
    format!("{verdict}{:<18} {found}{remedy}", check.name)
}

/// Whether the system's clock was set from the network; `None`: the system does not tell.
fn clock_is_synchronised() -> Option<bool> {
    let is_there = |path: &str| std::path::Path::new(path).exists();
    is_there(CLOCK_SERVICE).then(|| is_there(CLOCK_SYNCHRONISED))
}

/// Measures the network by an endpoint of its own, with a key that is used for nothing else.
async fn network_without_agent(settings: &Settings) -> Result<Vec<Check>, Failure> {
    match Net::bind_for_checkup(settings.offline, settings.relay.clone()).await {
        Ok(net) => {
            let facts = net.measure_alone().await;
            net.close().await;
            Ok(doctor::network(&facts))
        }
        Err(error) => {
            let remedy = "allow can-sync to open UDP sockets";
            Ok(vec![Check::failed("udp-in", format!("{error:#}"), remedy)])
        }
    }
}

/// A store of which the agent alone has the key.
fn store_in_use(store: &StoreStatus) -> Check {
    let StoreStatus { location, up, last_error, .. } = store;
    match (*up, location.as_str()) {
        (false, _) => {
            let error = last_error.as_deref().unwrap_or("it does not answer");
            Check::failed(
                "store",
                format!("{location}: {error}"),
                "start the store, or check --store",
            )
        }
        (true, EMBEDDED) => Check::ok("store", EMBEDDED),
        (true, _) => {
            let how =
                "its contract is checked if store and store_key_file are in the configuration";
            Check::skipped("store", format!("{location} answers; {how}"))
        }
    }
}

/// The contract of a foreign store; the embedded one was checked with the databases. `in_use`: the store of
/// the running agent, which may be another than the configuration names.
async fn store_checks(
    settings: &Settings,
    in_use: Option<&StoreStatus>,
    write: bool,
) -> Vec<Check> {
    let (Some(url), Some(key_file)) = (&settings.store, &settings.store_key_file) else {
        return vec![in_use.map_or_else(|| Check::ok("store", EMBEDDED), store_in_use)];
    };
    let remedy = "compare the store with proto/store.proto; until then can-sync may hold assets of it \
                  for missing or damaged";
    let stated = Stated {
        hash_algorithm: settings.store_hash,
        key_header: settings.store_key_header.clone(),
    };
    let store = match HttpStore::with_stated(url, key_file, stated) {
        Ok(store) => store,
        Err(error) => {
            let remedy = "check store and store_key_file in the configuration";
            return vec![Check::failed("store", format!("{error:#}"), remedy)];
        }
    };
    let nonce = write.then(rand::random);
    let findings = contract::check(&store, nonce).await;
    let checks = findings.into_iter().map(|finding| match finding.kept {
        Ok(seen) => Check::ok("store", format!("{}: {seen}", finding.promise)),
        Err(seen) => Check::failed("store", format!("{}: {seen}", finding.promise), remedy),
    });
    checks.collect()
}
