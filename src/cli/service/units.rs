//! The texts of services: the systemd units and the launchd agent, as `packaging/` has them, with
//! the paths of this installation. Pure.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::Failure;
use crate::cli::exit::Exit;

const USER_UNIT: &str = include_str!("../../../packaging/systemd/can-sync.user.service");
const SYSTEM_UNIT: &str = include_str!("../../../packaging/systemd/can-sync.system.service");
const LAUNCH_AGENT: &str = include_str!("../../../packaging/launchd/org.can-sync.agent.plist");

/// The drop-in that removes the settings which need namespaces from the user unit.
pub(super) const NO_NAMESPACES: &str =
    include_str!("../../../packaging/systemd/no-namespaces.conf");

/// The program in the units of `packaging/`.
pub(super) const PACKAGED_PROGRAM: &str = "/usr/bin/can-sync";

/// The settings of the user unit that need namespaces, but for paths that only systemd can fill in.
pub(super) fn namespace_settings() -> impl Iterator<Item = &'static str> {
    let reach = USER_UNIT.split("# What the agent may").nth(1).unwrap_or_default();
    reach
        .lines()
        .skip(1)
        .filter(|line| line.contains('=') && !line.starts_with('#') && !line.contains('%'))
}

/// The parts of a unit that differ between installations.
#[derive(Debug, Clone, Default)]
pub(super) struct Installation {
    /// The program.
    pub(super) program: PathBuf,
    /// Variables by which the agent finds its home: those of the shell that installs the service.
    pub(super) variables: Vec<(&'static str, PathBuf)>,
}

/// The unit of one user.
pub(super) fn user_unit(installation: &Installation) -> Result<String, Failure> {
    systemd_unit(USER_UNIT, installation)
}

/// The unit of the machine.
pub(super) fn system_unit(program: &Path) -> Result<String, Failure> {
    let installation = Installation { program: program.to_owned(), variables: Vec::new() };
    systemd_unit(SYSTEM_UNIT, &installation)
}

fn systemd_unit(template: &str, installation: &Installation) -> Result<String, Failure> {
    // `$` begins a variable in a command line, but not in a path alone or in `Environment=`.
    let program = quoted(&installation.program, "")?.replace('$', "$$");
    let mut start = format!("ExecStart={program} up\n");
    for (name, path) in &installation.variables {
        let _ = writeln!(start, "Environment={}", quoted(path, &format!("{name}="))?);
        // A folder outside of the home folder; one that is not there yet is made by the agent.
        let _ = writeln!(start, "ReadWritePaths={}", quoted(path, "-")?);
    }
    Ok(template.replace(&format!("ExecStart={PACKAGED_PROGRAM} up\n"), &start))
}

/// A path behind `prefix` as systemd reads it: one word, in which `%` and `\` mean themselves.
fn quoted(path: &Path, prefix: &str) -> Result<String, Failure> {
    let text = text_of(path)?;
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    Ok(format!("\"{prefix}{text}\""))
}

/// The launchd agent.
pub(super) fn launch_agent(installation: &Installation, log: &Path) -> Result<String, Failure> {
    let mut variables = String::new();
    for (name, path) in &installation.variables {
        let path = xml(path)?;
        let _ = writeln!(variables, "        <key>{name}</key>\n        <string>{path}</string>");
    }
    Ok(LAUNCH_AGENT
        .replace("@VARIABLES@", &variables)
        .replace("@PROGRAM@", &xml(&installation.program)?)
        .replace("@LOG@", &xml(log)?))
}

fn xml(path: &Path) -> Result<String, Failure> {
    Ok(text_of(path)?.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"))
}

fn text_of(path: &Path) -> Result<&str, Failure> {
    let text = path.to_str().filter(|text| !text.chars().any(char::is_control));
    text.ok_or_else(|| {
        let message = format!("{} cannot stand in the text of a service", path.display());
        Failure::new(Exit::Error, message)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_names_the_installed_program_and_the_home_whatever_their_names() {
        let installation = Installation {
            program: "/opt/my \"100%\" $tools/can-sync".into(),
            variables: vec![("CAN_SYNC_HOME", "/mnt/a b%".into())],
        };
        let unit = user_unit(&installation).unwrap();
        for line in [
            r#"ExecStart="/opt/my \"100%%\" $$tools/can-sync" up"#,
            r#"Environment="CAN_SYNC_HOME=/mnt/a b%%""#,
            r#"ReadWritePaths="-/mnt/a b%%""#,
        ] {
            assert!(unit.lines().any(|l| l == line), "{line}: {unit}");
        }
        let plist = launch_agent(&installation, Path::new("/l & m")).unwrap();
        assert!(plist.contains("<string>/opt/my \"100%\" $tools/can-sync</string>"));
        assert!(plist.contains("<string>/l &amp; m</string>") && !plist.contains('@'), "{plist}");
        let odd = Installation { program: "/a\nb".into(), variables: Vec::new() };
        assert!(user_unit(&odd).is_err());
    }

    #[test]
    fn the_drop_in_takes_back_every_setting_that_needs_namespaces() {
        let settings = namespace_settings().chain(["BindPaths=%h", "BindReadOnlyPaths=%t/systemd"]);
        let names: Vec<_> = settings.filter_map(|line| line.split_once('=')).collect();
        assert!(names.len() > 10);
        for (name, _) in names {
            assert!(
                NO_NAMESPACES.lines().any(|line| line.starts_with(&format!("{name}="))),
                "{name}"
            );
        }
    }
}
