//! `service`: has the service manager run the agent: systemd for one user or for the machine,
//! launchd for one user.
//!
//! S1  `uninstall` removes what `install` wrote, and never the agent's data.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use clap::Subcommand;
use serde::Serialize;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::shown;

mod units;

use units::Installation;

const UNIT: &str = "can-sync.service";
const LAUNCH_LABEL: &str = "org.can-sync.agent";

/// Where packages put their units.
const PACKAGED_UNITS: &str = "/usr/lib/systemd";

/// Variables by which the agent finds its home.
const HOME_VARIABLES: [&str; 3] = ["XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"];

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Run the agent from now on, in the background, whenever you are logged in
    Install {
        /// Run it with the machine, as a user of its own (as root)
        #[arg(long)]
        system: bool,
    },
    /// Stop the agent and remove the service; the data stays
    Uninstall {
        /// The agent of the machine
        #[arg(long)]
        system: bool,
    },
    /// Show how the service does
    Status {
        /// The agent of the machine
        #[arg(long)]
        system: bool,
    },
    /// Show what the agent logged
    Logs {
        /// The agent of the machine
        #[arg(long)]
        system: bool,
        /// Go on as the log grows
        #[arg(long, short)]
        follow: bool,
        /// How many lines
        #[arg(long, short, value_name = "N", default_value_t = 100)]
        lines: u32,
    },
}

/// `can-sync service`
pub(crate) async fn service(
    home: Option<PathBuf>,
    command: ServiceCommand,
    output: Output,
) -> Result<Exit, Failure> {
    match command {
        ServiceCommand::Install { system } => {
            let manager = Manager::of(system)?;
            if !manager.is_active() && !system {
                refuse_second(home.clone()).await?;
            }
            manager.install(home, output)
        }
        ServiceCommand::Uninstall { system } => Manager::of(system)?.uninstall(output),
        ServiceCommand::Status { system } => Manager::of(system)?.status(output),
        ServiceCommand::Logs { system, follow, lines } => Manager::of(system)?.logs(follow, lines),
    }
}

/// Two agents cannot share a home: the service would fail for as long as the other one runs.
async fn refuse_second(home: Option<PathBuf>) -> Result<(), Failure> {
    match Client::connect(home).await {
        Ok(client) => {
            let pid = client.home().api_address()?.map_or(0, |address| address.pid);
            let message =
                format!("an agent runs already (process {pid}): stop it, and then run this again");
            Err(Failure::new(Exit::Refused, message))
        }
        Err(_) => Ok(()),
    }
}

/// The service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    SystemdUser,
    SystemdSystem,
    Launchd,
}

/// The state of the installed service.
#[derive(Debug, Serialize)]
struct ServiceView {
    state: String,
    enabled: String,
    pid: String,
    restarts: String,
    says: String,
}

impl Manager {
    fn of(system: bool) -> Result<Self, Failure> {
        match (cfg!(target_os = "macos"), system) {
            (true, true) => {
                let message = "on macOS the agent runs as a service of a user: leave out --system";
                Err(Failure::new(Exit::Usage, message))
            }
            (true, false) => Ok(Self::Launchd),
            (false, true) => Ok(Self::SystemdSystem),
            (false, false) => Ok(Self::SystemdUser),
        }
    }

    fn install(self, home: Option<PathBuf>, output: Output) -> Result<Exit, Failure> {
        let program = std::env::current_exe().context("looking up this program's path")?;
        match self {
            Self::Launchd => return install_launchd(&installation(program, home)?, output),
            Self::SystemdSystem => {
                require_root()?;
                let about = "u can-sync - \"can-sync agent\" /var/lib/can-sync";
                run("systemd-sysusers", &["--inline", about])?;
                if !is_packaged(&program, "system") {
                    write(&self.unit_path()?, &units::system_unit(&program)?)?;
                }
            }
            Self::SystemdUser => {
                let is_packaged = is_packaged(&program, "user");
                let installation = installation(program, home)?;
                if !is_packaged || !installation.variables.is_empty() {
                    write(&self.unit_path()?, &units::user_unit(&installation)?)?;
                }
                let drop_in = self.drop_in_path()?;
                if has_user_namespaces() {
                    remove(&drop_in)?;
                } else {
                    output.note(
                        "This system lets no service of a user have namespaces: the agent runs \
                         without what needs them.",
                    );
                    write(&drop_in, units::NO_NAMESPACES)?;
                }
            }
        }
        self.systemctl(&["daemon-reload"])?;
        self.systemctl(&["enable", "--quiet", UNIT])?;
        self.systemctl(&["restart", UNIT])
            .map_err(|failure| with_hint(failure, "what it logged: `can-sync service logs`"))?;
        match self {
            Self::SystemdSystem => output.note(
                "The agent runs, and starts with the machine. Commands reach it as its user: \
                 `sudo -u can-sync can-sync --home /var/lib/can-sync status`.",
            ),
            _ if lingers() => output.note("The agent runs, and starts with the machine."),
            _ => output.note(
                "The agent runs, and whenever you are logged in. To have it run from the machine's \
                 start on: `loginctl enable-linger`.",
            ),
        }
        Ok(Exit::Ok)
    }

    fn uninstall(self, output: Output) -> Result<Exit, Failure> {
        if self == Self::Launchd {
            let path = launch_agent_path()?;
            // The error is ignored: the service may not be loaded.
            let _ = run("launchctl", &["bootout", &format!("{}/{LAUNCH_LABEL}", launchd_domain())]);
            remove(&path)?;
        } else {
            if self == Self::SystemdSystem {
                require_root()?;
            }
            // It may not be installed.
            let _ = self.systemctl(&["disable", "--now", "--quiet", UNIT]);
            remove(&self.unit_path()?)?;
            let drop_in = self.drop_in_path()?;
            remove(&drop_in)?;
            if let Some(folder) = drop_in.parent() {
                // Others may have put drop-ins there.
                let _ = fs::remove_dir(folder);
            }
            self.systemctl(&["daemon-reload"])?;
        }
        output.note("The agent runs no more. Its files stay.");
        Ok(Exit::Ok)
    }

    fn status(self, output: Output) -> Result<Exit, Failure> {
        let view = self.view()?;
        output.value(&view, |view| {
            let pid =
                if view.pid.is_empty() { String::new() } else { format!(", process {}", view.pid) };
            let says = if view.says.is_empty() {
                String::new()
            } else {
                format!("\nsays     {}", shown(&view.says))
            };
            format!(
                "service  {}{pid}, {}, restarted {} times{says}",
                view.state, view.enabled, view.restarts
            )
        })?;
        Ok(if view.state.starts_with("active") { Exit::Ok } else { Exit::NotRunning })
    }

    fn view(self) -> Result<ServiceView, Failure> {
        if self == Self::Launchd {
            let loaded =
                run("launchctl", &["print", &format!("{}/{LAUNCH_LABEL}", launchd_domain())]);
            let text = loaded.as_deref().unwrap_or_default();
            let of = |key: &str| {
                let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
                line.unwrap_or_default().to_owned()
            };
            let (pid, runs) = (of("pid = "), of("runs = "));
            let state = if pid.is_empty() { "inactive" } else { "active" };
            let enabled = if loaded.is_ok() { "enabled" } else { "not installed" };
            let (state, enabled, says) = (state.into(), enabled.into(), String::new());
            return Ok(ServiceView { state, enabled, pid, restarts: runs, says });
        }
        let properties = "ActiveState,SubState,UnitFileState,MainPID,NRestarts,StatusText";
        let text = self.systemctl(&["show", UNIT, "--property", properties])?;
        let of = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once('='));
            lines
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value.to_owned())
                .unwrap_or_default()
        };
        let enabled = Some(of("UnitFileState")).filter(|state| !state.is_empty());
        Ok(ServiceView {
            state: format!("{} ({})", of("ActiveState"), of("SubState")),
            enabled: enabled.unwrap_or_else(|| "not installed".into()),
            pid: Some(of("MainPID")).filter(|pid| pid != "0").unwrap_or_default(),
            restarts: of("NRestarts"),
            says: of("StatusText"),
        })
    }

    fn logs(self, follow: bool, lines: u32) -> Result<Exit, Failure> {
        let lines = lines.to_string();
        let log = launchd_log_path()?;
        let mut command = match self {
            Self::Launchd => {
                let mut tail = Command::new("tail");
                tail.args(["-n", &lines]).args(follow.then_some("-F")).arg(log);
                tail
            }
            Self::SystemdUser | Self::SystemdSystem => {
                let mut journal = Command::new("journalctl");
                journal.args((self == Self::SystemdUser).then_some("--user"));
                journal
                    .args(["--unit", UNIT, "--lines", &lines])
                    .args(follow.then_some("--follow"));
                journal
            }
        };
        let ended =
            command.status().with_context(|| format!("running {:?}", command.get_program()))?;
        Ok(if ended.success() { Exit::Ok } else { Exit::Error })
    }

    fn is_active(self) -> bool {
        self.view().is_ok_and(|view| view.state.starts_with("active"))
    }

    fn systemctl(self, args: &[&str]) -> Result<String, Failure> {
        match self {
            Self::SystemdUser => run("systemctl", &[&["--user"], args].concat()),
            Self::SystemdSystem | Self::Launchd => run("systemctl", args),
        }
    }

    fn unit_path(self) -> Result<PathBuf, Failure> {
        let folder = match self {
            Self::SystemdSystem => PathBuf::from("/etc/systemd/system"),
            Self::SystemdUser | Self::Launchd => {
                let config = folder_of("XDG_CONFIG_HOME")
                    .map_or_else(|| Ok::<_, Failure>(home_folder()?.join(".config")), Ok)?;
                config.join("systemd/user")
            }
        };
        Ok(folder.join(UNIT))
    }

    fn drop_in_path(self) -> Result<PathBuf, Failure> {
        Ok(self.unit_path()?.with_extension("service.d").join("no-namespaces.conf"))
    }
}

/// The values for the unit of this program and home.
fn installation(program: PathBuf, home: Option<PathBuf>) -> Result<Installation, Failure> {
    let home = home.map(std::path::absolute).transpose().context("making the home absolute")?;
    let variables = HOME_VARIABLES.iter().filter_map(|name| Some((*name, folder_of(name)?)));
    let variables = home.map(|home| ("CAN_SYNC_HOME", home)).into_iter().chain(variables).collect();
    Ok(Installation { program, variables })
}

/// Whether a package brought a unit for this very program.
fn is_packaged(program: &Path, kind: &str) -> bool {
    program == Path::new(units::PACKAGED_PROGRAM)
        && Path::new(PACKAGED_UNITS).join(kind).join(UNIT).exists()
}

/// Whether a user's service may have its own namespaces, which not every system allows.
fn has_user_namespaces() -> bool {
    let settings = units::namespace_settings().flat_map(|setting| ["--property", setting]);
    let args = ["--user", "--wait", "--collect", "--quiet"].into_iter().chain(settings);
    run("systemd-run", &args.chain(["/bin/true"]).collect::<Vec<_>>()).is_ok()
}

/// Whether the user's services run when the user is not logged in.
fn lingers() -> bool {
    let user = rustix::process::geteuid().as_raw().to_string();
    run("loginctl", &["show-user", &user, "--property", "Linger"])
        .is_ok_and(|text| text.trim() == "Linger=yes")
}

fn require_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(Exit::Refused, "the service of the machine is root's to change: use sudo"))
}

fn install_launchd(installation: &Installation, output: Output) -> Result<Exit, Failure> {
    let (path, log) = (launch_agent_path()?, launchd_log_path()?);
    write(&path, &units::launch_agent(installation, &log)?)?;
    let domain = launchd_domain();
    // It may not be loaded yet.
    let _ = run("launchctl", &["bootout", &format!("{domain}/{LAUNCH_LABEL}")]);
    run("launchctl", &["bootstrap", &domain, &path.to_string_lossy()])?;
    output.note("The agent runs, and whenever you are logged in.");
    Ok(Exit::Ok)
}

fn launchd_domain() -> String {
    format!("gui/{}", rustix::process::geteuid().as_raw())
}

fn launch_agent_path() -> Result<PathBuf, Failure> {
    Ok(home_folder()?.join("Library/LaunchAgents").join(format!("{LAUNCH_LABEL}.plist")))
}

fn launchd_log_path() -> Result<PathBuf, Failure> {
    Ok(home_folder()?.join("Library/Logs/can-sync.log"))
}

fn home_folder() -> Result<PathBuf, Failure> {
    Ok(folder_of("HOME").context("HOME is not set")?)
}

fn folder_of(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The output of a program that succeeds.
fn run(program: &str, args: &[&str]) -> Result<String, Failure> {
    let ran = Command::new(program).args(args).stdin(Stdio::null()).output();
    let ran = match ran {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let message =
                format!("{program} is not on this machine: start `can-sync up` another way");
            return Err(Failure::new(Exit::Error, message));
        }
        ran => ran.with_context(|| format!("running {program}"))?,
    };
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        let said = said.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let message = format!("`{program} {}` failed: {said}", args.join(" "));
        return Err(Failure::new(Exit::Error, message));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

fn with_hint(failure: Failure, hint: &str) -> Failure {
    match failure {
        Failure::Report(exit, error) => Failure::new(exit, format!("{error:#}; {hint}")),
        Failure::OutputClosed => Failure::OutputClosed,
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let written =
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    Ok(written.with_context(|| format!("writing {}", path.display()))?)
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let text = format!("removing {}", path.display());
            Err(anyhow::Error::new(error).context(text).into())
        }
        _ => Ok(()),
    }
}
