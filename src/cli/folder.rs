//! `folder`, `history`, `restore` and `why` of a path: shared folders and the directories bound to them.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::client::Client;
use super::devices;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{bytes, counted, shown};
use super::time::{Since, parse_since, utc};
use crate::api::requests::NoArguments;
use crate::clock::wall_ms;
use crate::core::folder::path::FolderPath;
use crate::core::ids::Hash;
use crate::folders::status::{
    BindRequest, BindingState, Bound, BoundElsewhere, ContentView, FolderStatus, FolderView,
    FoldersPage, Located, PathHistory, RestoreRequest, Restored, Skipped, UndoRequest, Undone, Why,
};
use crate::folders::{Keep, Mode};

/// Examples of one kind that a status shows.
const EXAMPLES_SHOWN: usize = 3;

/// The arguments of `can-sync folder`.
#[derive(Debug, Subcommand)]
pub(crate) enum FolderCommand {
    /// Make a shared folder of a directory
    Add {
        /// The directory
        dir: PathBuf,
        /// The folder's name [default: the directory's own]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Bind a directory to a folder of the group
    Join {
        /// The folder's name, id or the unique start of the id
        folder: String,
        /// The directory; made if it is not there
        dir: PathBuf,
        #[command(flatten)]
        how: HowArgs,
    },
    /// List the folders of the group
    Ls,
    /// Show the state of folders on this device: what is missing, in conflict, left out or held,
    /// and why
    Status {
        /// The folder [default: all that are bound on this device]
        folder: Option<String>,
    },
    /// Stop syncing a directory for now
    Pause {
        /// The folder
        folder: String,
    },
    /// Go on after a pause
    Resume {
        /// The folder
        folder: String,
    },
    /// Allow changes that are held because there are very many
    Confirm {
        /// The folder
        folder: String,
    },
    /// Unbind the directory of this device: it stays as it is, and so does the folder
    Remove {
        /// The folder
        folder: String,
    },
    /// Put a folder back to what it was; itself a change that can be undone
    Undo {
        /// The folder
        folder: String,
        /// Undo what changed since then: `2h`, `7d` or a time such as `2026-01-31T15:04:05Z` [default:
        /// since the changes in this device's directory began that are held back]
        #[arg(long, value_name = "TIME", value_parser = parse_since)]
        since: Option<Since>,
        /// Only changes by this device: its name, node ID or the start of it
        #[arg(long)]
        device: Option<String>,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
    },
}

/// How a directory is bound.
#[derive(Debug, Args)]
pub(crate) struct HowArgs {
    /// Which way changes go
    #[arg(long, value_enum, default_value = "two-way")]
    mode: ModeArg,
    /// Keep contents as copies (which share blocks where the disk can do that), or large ones as
    /// read-only hard links into the store
    #[arg(long, value_enum, default_value = "copy")]
    keep: KeepArg,
    /// Sync symbolic links, as links
    #[arg(long)]
    symlinks: bool,
    /// Only say what it would cost
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeArg {
    /// Both ways
    TwoWay,
    /// From the directory into the folder only
    In,
    /// From the folder into the directory only
    Out,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KeepArg {
    /// As copies
    Copy,
    /// Large ones as hard links
    Link,
}

/// What names a path of a folder.
#[derive(Debug, Args)]
pub(crate) struct PathArgs {
    /// The path: of a file in a bound directory, or `FOLDER:PATH`
    path: PathBuf,
}

impl HowArgs {
    fn request(&self, dir: &Path, name: Option<String>) -> Result<BindRequest, Failure> {
        Ok(BindRequest {
            dir: absolute(dir)?,
            name,
            mode: match self.mode {
                ModeArg::TwoWay => Mode::TwoWay,
                ModeArg::In => Mode::In,
                ModeArg::Out => Mode::Out,
            },
            keep: match self.keep {
                KeepArg::Copy => Keep::Copy,
                KeepArg::Link => Keep::Link,
            },
            symlinks: self.symlinks,
            dry_run: self.dry_run,
        })
    }
}

/// `can-sync folder`
pub(crate) async fn folder(
    client: &Client,
    command: FolderCommand,
    output: Output,
) -> Result<Exit, Failure> {
    match command {
        FolderCommand::Add { dir, name, how } => {
            let request = how.request(&dir, name)?;
            let bound: Bound = client.post_unhurried(&["v1", "folders"], &request).await?;
            show_bound(&bound, request.dry_run, output)
        }
        FolderCommand::Join { folder, dir, how } => {
            if !how.dry_run {
                std::fs::create_dir_all(&dir).map_err(|error| {
                    let text = format!("cannot make {}: {error}", dir.display());
                    Failure::new(Exit::Error, text)
                })?;
            }
            let request = how.request(&dir, None)?;
            let bound: Bound =
                client.post_unhurried(&["v1", "folders", &folder, "join"], &request).await?;
            show_bound(&bound, request.dry_run, output)
        }
        FolderCommand::Ls => {
            let page: FoldersPage = client.get(&["v1", "folders"], &[]).await?;
            output.values(&page.folders, view_line)?;
            Ok(Exit::Ok)
        }
        FolderCommand::Status { folder } => status(client, folder, output).await,
        FolderCommand::Pause { folder } => change(client, &folder, "pause", output).await,
        FolderCommand::Resume { folder } => change(client, &folder, "resume", output).await,
        FolderCommand::Confirm { folder } => change(client, &folder, "confirm", output).await,
        FolderCommand::Remove { folder } => {
            let view: FolderView = client.delete(&["v1", "folders", &folder, "binding"]).await?;
            output.value(&view, view_line)?;
            Ok(Exit::Ok)
        }
        FolderCommand::Undo { folder, since, device, dry_run } => {
            let device = match device {
                Some(text) => Some(devices::node_id(&devices::all(client).await?, &text)?),
                None => None,
            };
            let since_ms = since.map(|since| since.ms(wall_ms()));
            let request = UndoRequest { since_ms, device, dry_run };
            let undone: Undone =
                client.post_unhurried(&["v1", "folders", &folder, "undo"], &request).await?;
            output.value(&undone, |undone| undone_text(undone, dry_run))?;
            Ok(Exit::Ok)
        }
    }
}

async fn change(
    client: &Client,
    folder: &str,
    what: &str,
    output: Output,
) -> Result<Exit, Failure> {
    let view: FolderView = client.post(&["v1", "folders", folder, what], &NoArguments {}).await?;
    output.value(&view, view_line)?;
    Ok(Exit::Ok)
}

async fn status(client: &Client, folder: Option<String>, output: Output) -> Result<Exit, Failure> {
    let folders = match folder {
        Some(folder) => vec![folder],
        None => {
            let page: FoldersPage = client.get(&["v1", "folders"], &[]).await?;
            let bound = page.folders.into_iter().filter(|folder| folder.binding.is_some());
            bound.map(|folder| folder.id.to_string()).collect()
        }
    };
    for folder in folders {
        let status: FolderStatus = client.get(&["v1", "folders", &folder], &[]).await?;
        output.value(&status, status_text)?;
    }
    Ok(Exit::Ok)
}

/// `can-sync history`
pub(crate) async fn history(
    client: &Client,
    args: PathArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let (folder, path) = located(client, &args.path).await?;
    let route = ["v1", "folders", folder.as_str(), "history"];
    let history: PathHistory = client.get(&route, &[("path", &path)]).await?;
    let names = devices::all(client).await?;
    let name = |id| {
        let found = names.iter().find(|device| device.node_id == id);
        found.map_or_else(|| id.short(), |device| shown(&device.name))
    };
    output.values(&history.versions, |version| {
        let until = match version.until_ms {
            None => format!("current, by {}", name(version.device)),
            Some(ms) => format!("until {}, then changed by {}", utc(ms), name(version.device)),
        };
        format!("{:>4}  {}  {until}", version.number, content_text(&version.content))
    })?;
    if history.more {
        output.note("There are older versions than these.");
    }
    Ok(Exit::Ok)
}

/// `can-sync restore` of a path
pub(crate) async fn restore(
    client: &Client,
    path: &Path,
    version: Option<u64>,
    at: Option<Since>,
    output: Output,
) -> Result<Exit, Failure> {
    let (folder, path) = located(client, path).await?;
    let request = RestoreRequest { path, version, at_ms: at.map(|at| at.ms(wall_ms())) };
    let restored: Restored = client.post(&["v1", "folders", &folder, "restore"], &request).await?;
    output.value(&restored, |restored| {
        let is = if restored.changed { "is again" } else { "is already" };
        format!("{} {is} {}", shown(&restored.path), content_text(&restored.content))
    })?;
    Ok(Exit::Ok)
}

/// Why a path of a folder is as it is on this device, with the hash of what the folder holds there.
pub(crate) async fn why(
    client: &Client,
    path: &Path,
    output: Output,
) -> Result<Option<Hash>, Failure> {
    let (folder, path) = located(client, path).await?;
    let route = ["v1", "folders", folder.as_str(), "why"];
    let why: Why = client.get(&route, &[("path", &path)]).await?;
    output.value(&why, |why| {
        let none = || "nothing".to_owned();
        let mut lines: Vec<String> = why.lines.iter().map(|line| shown(line)).collect();
        let folder = why.folder.as_ref().map_or_else(none, content_text);
        lines.push(format!("folder       {folder}"));
        lines.push(format!("last synced  {}", why.base.as_ref().map_or_else(none, content_text)));
        lines.push(format!("directory    {}", shown(&why.directory)));
        lines.join("\n")
    })?;
    Ok(why.folder.and_then(|content| match content {
        ContentView::File { hash, .. } => Some(hash),
        _ => None,
    }))
}

/// Whether `what`, an asset or a path, means a path of a folder. What may be the start of a hash means
/// an asset, unless such a file is there.
pub(crate) async fn means_path(client: &Client, what: &Path) -> Result<bool, Failure> {
    Ok(hash_prefix(what).is_none() && is_path(client, what).await?)
}

/// The text as the start of a hash, unless a file of that name exists.
fn hash_prefix(what: &Path) -> Option<&str> {
    let text = what.to_str()?;
    let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hex && what.symlink_metadata().is_err()).then_some(text)
}

/// Whether this is a path of a folder.
async fn is_path(client: &Client, path: &Path) -> Result<bool, Failure> {
    match located(client, path).await {
        Ok(_) => Ok(true),
        Err(Failure::Report(Exit::Unknown | Exit::Usage, _)) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// The folder and the path in it that the user means: `FOLDER:PATH`, or a path on this device.
async fn located(client: &Client, path: &Path) -> Result<(String, String), Failure> {
    let text = path.as_os_str().as_bytes();
    let colon = text.iter().position(|byte| *byte == b':');
    if let Some(colon) = colon
        && !text[..colon].contains(&b'/')
        && path.symlink_metadata().is_err()
        && let Ok(folder) = std::str::from_utf8(&text[..colon])
    {
        return Ok((folder.to_owned(), path_text(&text[colon + 1..])?));
    }
    let path = absolute(path)?;
    let located: Located = client.get(&["v1", "locate"], &[("path", &path)]).await?;
    if located.path.is_empty() {
        let text = "that is the bound directory itself: name a path in it";
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok((located.id.to_string(), located.path))
}

/// An absolute path in the text form of paths.
fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())))?;
    let mut plain = PathBuf::new();
    for component in absolute.components() {
        match component {
            std::path::Component::ParentDir => {
                plain.pop();
            }
            component => plain.push(component),
        }
    }
    let bytes = plain.as_os_str().as_bytes();
    Ok(format!("/{}", path_text(bytes.strip_prefix(b"/").unwrap_or(bytes))?))
}

fn path_text(bytes: &[u8]) -> Result<String, Failure> {
    let path = FolderPath::from_bytes(bytes);
    path.map(|path| path.to_text()).map_err(|error| Failure::new(Exit::Usage, error))
}

fn show_bound(bound: &Bound, is_preview: bool, output: Output) -> Result<Exit, Failure> {
    output.value(bound, |bound| bound_text(bound, is_preview))?;
    Ok(Exit::Ok)
}

fn bound_text(bound: &Bound, is_preview: bool) -> String {
    let id = bound.id.map_or_else(|| "(a new folder)".to_owned(), |id| id.to_string());
    let is = if is_preview { "would be bound to" } else { "is bound to" };
    let mut lines = vec![
        format!("{} {is} {}  {id}", shown(&bound.dir), shown(&bound.name)),
        format!("{}, {}", counted(bound.files, "file", "files"), bytes(bound.bytes)),
        match bound.shares_blocks {
            true => "directory and store share their blocks: nothing is kept twice".into(),
            false => format!("the store keeps a copy: up to {} more", bytes(bound.needed_bytes)),
        },
    ];
    if bound.arriving_files > 0 {
        let arriving = bytes(bound.arriving_bytes);
        lines.push(format!("{} files, {arriving}, come from the folder", bound.arriving_files));
    }
    if bound.in_both > 0 {
        lines
            .push(format!("{} files are in both: where they differ, both are kept", bound.in_both));
    }
    lines.extend(bound.skipped.iter().map(skipped_line));
    lines.join("\n")
}

fn view_line(view: &FolderView) -> String {
    let name = shown(&view.name);
    match &view.binding {
        None => {
            let names: Vec<String> =
                view.elsewhere.iter().map(|there| shown(&there.device_name)).collect();
            let there =
                if names.is_empty() { String::new() } else { format!("  on {}", names.join(", ")) };
            format!("{}  {name}  not on this device{there}", view.id)
        }
        Some(binding) => {
            let mode = binding.mode.name();
            format!(
                "{}  {name}  {}  {mode}  {}",
                view.id,
                state(binding.state),
                shown(&binding.dir)
            )
        }
    }
}

fn state(state: BindingState) -> &'static str {
    match state {
        BindingState::Scanning => "scanning",
        BindingState::Syncing => "syncing",
        BindingState::UpToDate => "up to date",
        BindingState::Paused => "paused",
        BindingState::Held => "HELD",
        BindingState::Stopped => "STOPPED",
    }
}

fn status_text(status: &FolderStatus) -> String {
    let mut lines = vec![view_line(&status.folder)];
    if let Some(binding) = &status.folder.binding {
        let files = counted(status.files, "file", "files");
        lines.push(format!("  {files}, {}", bytes(status.bytes)));
        lines.extend(binding.problems.iter().map(|problem| format!("  ! {}", shown(problem))));
    }
    if status.missing > 0 {
        lines
            .push(format!("  {} missing: their content is not on this device yet", status.missing));
    }
    if status.waiting > 0 {
        lines.push(format!("  {} waiting: they are tried again", status.waiting));
    }
    if status.conflicts > 0 {
        let examples = examples(&status.conflict_examples, status.conflicts);
        let copies = if status.conflicts == 1 { "copy" } else { "copies" };
        lines.push(format!("  {} conflict {copies}: {examples}", status.conflicts));
    }
    lines.extend(status.skipped.iter().map(|skipped| format!("  {}", skipped_line(skipped))));
    lines.extend(status.folder.elsewhere.iter().map(|there| {
        let BoundElsewhere { device_name, dir, mode, .. } = there;
        format!("  also on {}: {} ({})", shown(device_name), shown(dir), shown(mode))
    }));
    lines.join("\n")
}

fn skipped_line(skipped: &Skipped) -> String {
    let Skipped { reason, count, examples: paths } = skipped;
    format!("{count} left out, {}: {}", shown(reason), examples(paths, *count))
}

fn examples(paths: &[String], count: u64) -> String {
    let shown: Vec<String> = paths.iter().take(EXAMPLES_SHOWN).map(|path| shown(path)).collect();
    let more = if count > shown.len() as u64 { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn content_text(content: &ContentView) -> String {
    match content {
        ContentView::Absent => "removed".into(),
        ContentView::File { hash, size_bytes, executable, here, .. } => {
            let executable = if *executable { ", executable" } else { "" };
            let here = if *here { "" } else { ", not on this device" };
            format!("{}  {}{executable}{here}", hash.short(), bytes(*size_bytes))
        }
        ContentView::Symlink { target } => format!("a link to {}", shown(target)),
        ContentView::Directory => "an empty directory".into(),
        ContentView::Unknown => "something of a later version of can-sync".into(),
    }
}

fn undone_text(undone: &Undone, is_preview: bool) -> String {
    let Undone { brought_back, removed, unchanged, missing, nowhere, held, examples } = undone;
    let would = if is_preview { "would be " } else { "" };
    let mut lines = vec![format!(
        "{brought_back} {would}brought back, {removed} {would}removed, {unchanged} as they are"
    )];
    if *missing > 0 {
        lines.push(format!("{missing} of them come once another device sends their content"));
    }
    if *nowhere > 0 {
        lines.push(format!(
            "{nowhere} stay as they are: no device is known to have their earlier content any more"
        ));
    }
    if *held && is_preview {
        lines.push(
            "changes in the directory are held: the undo takes them in first, and they are counted \
             here"
                .into(),
        );
    }
    lines.extend(examples.iter().map(|step| {
        let (from, to) = (content_text(&step.from), content_text(&step.to));
        format!("  {}: {from} -> {to}", shown(&step.path))
    }));
    if (examples.len() as u64) < brought_back + removed {
        lines.push("  …".into());
    }
    lines.join("\n")
}
