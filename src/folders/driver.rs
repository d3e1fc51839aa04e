//! The driver of one binding: waits for hints from the directory, changes of the journal, arrived
//! assets and the scan, and reconciles the paths that they name.
//!
//! D1  Hints, changes and arrivals only say where to look. The scan at the start, every hour and
//!     after lost hints finds what they missed.
//! D2  The cursor into the journal moves past a change only when the change is in the directory or
//!     noted as pending.
//! D3  What is gone is looked at after the directories that appeared: a renamed directory is taken in
//!     under its new name first, so that the brake sees a rename and not very many removals.
//! D4  A directory that cannot be used stops the binding until it can; nothing counts as gone then.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::Binding;
use super::db::{BindingId, StoredBinding};
use super::disk::{Hint, Hints, Root, Rules, Watch};
use super::guard::Fresh;
use super::look::Unusable;
use super::quiet::{Quiet, RETRY_FIRST};
use super::reconcile::ROUND_PATHS;
use super::scan::{self, Found, Scan};
use super::shared::{Shared, blocking};
use super::status::BindingState;
use crate::clock::{Clock, wall_ms};
use crate::core::folder::brake::{Brake, Source};
use crate::core::folder::collide::Folding;
use crate::core::folder::path::FolderPath;
use crate::replica::journal::{AskError, Commits};
use crate::state::journal::Cursor;

/// How often everything is compared.
const SCAN_EVERY: Duration = Duration::from_secs(3600);

/// How often, where hints are not to be had.
const SCAN_UNWATCHED: Duration = Duration::from_secs(60);

/// How often a directory that cannot be used is tried again.
const REOPEN_EVERY: Duration = Duration::from_secs(5);

/// How often kept content is looked at, while there is some.
const SETTLE_EVERY: Duration = Duration::from_secs(2);

/// How often a driver checks that its directory still exists while nothing happens. It keeps the
/// status up to date; another check precedes everything that counts a file as removed.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// Commands that wait for a driver: people give them one by one.
pub(super) const COMMANDS_MAX: usize = 8;

/// A command to a driver.
#[derive(Debug)]
pub(super) enum Command {
    /// Stop writing anything.
    Pause(oneshot::Sender<()>),
    /// Go on.
    Resume(oneshot::Sender<()>),
    /// Let the held changes pass.
    Confirm(oneshot::Sender<()>),
    /// Take in everything that is in the directory, held or not; answers when that is done.
    TakeIn(oneshot::Sender<()>),
}

/// Drives one binding.
pub(super) struct Driver {
    pub(super) shared: Shared,
    pub(super) id: BindingId,
    pub(super) binding: Binding,
    pub(super) root: Option<Arc<Root>>,
    pub(super) rules: Arc<Rules>,
    /// Which names are the same to the directory's file system, such as `A` and `a`.
    pub(super) folding: Folding,
    pub(super) brake: Brake,
    pub(super) fresh: Fresh,
    /// The paths of the binding, for the brake.
    pub(super) files: u64,
    /// The user let everything pass until all is equal.
    pub(super) is_confirmed: bool,
    is_paused: bool,
    pub(super) held: Option<Source>,
    pub(super) cursor: Option<Cursor>,
    /// When the cursor is written down; `None`: it is.
    pub(super) save_cursor_at: Option<Instant>,
    /// The digest of the rules under which the changes before the cursor were taken up.
    rules_taken_up: Option<[u8; 32]>,
    watch: Option<Arc<Watch>>,
    pub(super) quiet: Quiet,
    scan: Option<mpsc::Receiver<Found>>,
    /// The scan is one of a directory that appeared.
    scans_below: bool,
    pub(super) below: VecDeque<FolderPath>,
    pub(super) scan_at: Instant,
    settle_at: Instant,
    pub(super) check_at: Instant,
    is_watched: bool,
    /// Up to which position of the index arrived assets were matched with waiting paths, if at all.
    pub(super) arrived: Option<([u8; 16], u64)>,
    /// The newest arrival that this driver has handled, of assets that the index knew before.
    pub(super) arrived_turn: u64,
    pub(super) retry_at: Option<Instant>,
    pub(super) retry_pause: Duration,
    pub(super) has_pending: bool,
    takers: Vec<oneshot::Sender<()>>,
    /// Changes of the journal were left alone while nothing could be written.
    pub(super) is_behind: bool,
    clock: Clock,
    /// Records of the folder that are no versions.
    pub(super) unreadable: u64,
}

/// The event that woke a driver.
enum Wake {
    Command(Option<Command>),
    Hint(Option<Hint>),
    Listed,
    Committed,
    Scanned(Option<Found>),
    Time,
}

impl Driver {
    pub(super) fn new(shared: Shared, stored: StoredBinding) -> Self {
        let StoredBinding { id, binding, is_paused, held, cursor, rules, .. } = stored;
        Self {
            shared,
            id,
            binding,
            root: None,
            rules: Arc::new(Rules::from_text("")),
            folding: Folding::default(),
            brake: Brake::default(),
            fresh: Fresh::default(),
            files: 0,
            is_confirmed: false,
            is_paused,
            held,
            cursor,
            save_cursor_at: None,
            rules_taken_up: rules,
            watch: None,
            quiet: Quiet::default(),
            scan: None,
            scans_below: false,
            below: VecDeque::new(),
            scan_at: Instant::now(),
            settle_at: Instant::now(),
            check_at: Instant::now(),
            is_watched: false,
            arrived: None,
            arrived_turn: 0,
            retry_at: None,
            retry_pause: RETRY_FIRST,
            has_pending: false,
            takers: Vec::new(),
            is_behind: false,
            clock: Clock::start(),
            unreadable: 0,
        }
    }

    /// Runs until the other end of `commands` is dropped.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let error = match self.session(&mut commands).await {
                Ok(()) => return,
                Err(error) => error,
            };
            self.close();
            if is_closed(&error) {
                return;
            }
            let text = format!("{error:#}");
            tracing::warn!(dir = %self.binding.dir.display(), "a folder waits: {text}");
            self.problem("directory", Some(text));
            self.show(BindingState::Stopped);
            let again = Instant::now() + REOPEN_EVERY;
            loop {
                tokio::select! {
                    () = sleep_until(again) => break,
                    command = commands.recv() => match command {
                        Some(command) => {
                            if let Err(error) = self.obey(command).await {
                                tracing::warn!("{error:#}");
                            }
                        }
                        None => return,
                    },
                }
            }
        }
    }

    /// Serves the directory until it cannot be used, or the binding is removed.
    async fn session(&mut self, commands: &mut mpsc::Receiver<Command>) -> Result<()> {
        let mut hints = self.open().await?;
        let mut commits = self.shared.journal.commits();
        let mut listed = self.shared.listed.clone();
        // What was committed before the first look counts as new.
        commits.mark_changed();
        listed.mark_changed();
        loop {
            self.begin_scan();
            if self.is_behind && !self.is_idle() {
                self.is_behind = false;
                self.take_changes().await?;
                self.take_arrived().await?;
            }
            self.tell(&commits);
            let wake = self.wait(commands, &mut hints, &mut commits, &mut listed).await;
            match wake {
                Wake::Command(None) => return Ok(()),
                Wake::Command(Some(command)) => self.obey(command).await?,
                Wake::Hint(hint) => self.hinted(hint, &mut hints).await?,
                Wake::Committed if self.held.is_some() => self.release().await?,
                Wake::Committed => self.take_changes().await?,
                Wake::Listed => self.take_arrived().await?,
                Wake::Scanned(found) => self.scanned(found).await?,
                Wake::Time => self.on_time().await?,
            }
        }
    }

    async fn wait(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
        hints: &mut Option<Hints>,
        commits: &mut watch::Receiver<Commits>,
        listed: &mut watch::Receiver<u64>,
    ) -> Wake {
        let is_idle = self.is_idle();
        let is_held_back = self.held.is_some() && !self.is_paused;
        let scan_at = self.scan.is_none().then_some(self.scan_at);
        let keeps = self.root.as_ref().is_some_and(|root| root.keeps());
        let settle_at = keeps.then_some(self.settle_at);
        let quiet_at = self.quiet.next().filter(|_| !self.looks_below());
        let timers = [quiet_at, self.retry_at, scan_at];
        let always = [settle_at, self.save_cursor_at];
        let timers = timers.into_iter().filter(|_| !is_idle).chain(always).flatten();
        let at = timers.fold(self.check_at, Instant::min);
        let next_hint = async {
            match hints {
                Some(hints) => hints.next().await,
                None => std::future::pending().await,
            }
        };
        let scan = &mut self.scan;
        let next_found = async {
            match scan {
                Some(scan) => scan.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            command = commands.recv() => Wake::Command(command),
            hint = next_hint => Wake::Hint(hint),
            Ok(()) = commits.changed(), if !is_idle || is_held_back => Wake::Committed,
            Ok(()) = listed.changed(), if !is_idle => Wake::Listed,
            () = sleep_until(at) => Wake::Time,
            found = next_found => Wake::Scanned(found),
        }
    }

    // ---- the directory ---------------------------------------------------------------------------

    async fn open(&mut self) -> Result<Option<Hints>> {
        self.check_folder().await?;
        self.tell_bound().await;
        let writes = self.binding.mode.writes();
        let (dir, mark) = (self.binding.dir.clone(), self.binding.mark(self.shared.me));
        let near = self.shared.staging_dir.clone();
        let opened = blocking(move || {
            let root = Root::open(&dir, mark).map_err(Unusable)?;
            let rules = Rules::load(&root).context("reading .cansyncignore")?;
            let folding = if writes { folding(&root, &near) } else { Folding::default() };
            let watch = Watch::start(&root);
            Ok((root, rules, folding, watch))
        });
        let (root, rules, folding, watch) = opened.await?;
        self.folding = folding;
        self.problem("directory", None);
        self.adopt_rules(rules).await?;
        self.root = Some(Arc::new(root));
        self.settle_under_way().await?;
        let (db, id) = (self.shared.db.clone(), self.id);
        self.files = blocking(move || Ok(db.count(id)?)).await?;
        self.arrived = None;
        self.retry_at = Some(Instant::now());
        self.scan_at = Instant::now();
        Ok(match watch {
            Ok((watch, hints)) => {
                self.watch = Some(Arc::new(watch));
                self.is_watched = true;
                Some(hints)
            }
            Err(error) => {
                self.unwatched(format!("the directory is not watched: {error}"));
                None
            }
        })
    }

    /// Checks that the group has the folder: after this device left its group, the folders of that
    /// group must not enter the next one.
    pub(super) async fn check_folder(&self) -> Result<()> {
        let folders = self.shared.journal.folders().await?;
        let is_there = folders.iter().any(|folder| folder.id == self.binding.folder);
        anyhow::ensure!(
            is_there,
            "the group does not have the folder (yet): after leaving a group, unbind its folders with \
             `can-sync folder remove {}`",
            self.binding.folder
        );
        Ok(())
    }

    /// Tells the group of the binding. Nothing depends on that: it is for people.
    async fn tell_bound(&self) {
        let Binding { folder, dir, mode, .. } = &self.binding;
        let dir = dir.to_string_lossy();
        if let Err(error) = self.shared.journal.tell_bound(*folder, &dir, mode.name()).await {
            tracing::debug!(%error, "cannot report to the group which directory is bound");
        }
    }

    fn close(&mut self) {
        self.scan = None;
        self.below.clear();
        self.watch = None;
        self.root = None;
        self.quiet = Quiet::default();
    }

    /// Takes up the rules of what is ignored. What was ignored until now was passed over in the
    /// journal, so everything is looked at again when they changed, also while the agent was stopped.
    pub(super) async fn adopt_rules(&mut self, rules: Rules) -> Result<()> {
        let problems = (!rules.problems.is_empty()).then(|| rules.problems.join("; "));
        self.problem("rules", problems);
        let digest = rules.digest;
        self.rules = Arc::new(rules);
        if self.rules_taken_up == Some(digest) {
            return Ok(());
        }
        let (db, id) = (self.shared.db.clone(), self.id);
        blocking(move || Ok(db.set_rules(id, digest)?)).await?;
        self.rules_taken_up = Some(digest);
        self.cursor = None;
        self.is_behind = true;
        self.scan_soon();
        Ok(())
    }

    pub(super) fn unwatched(&mut self, why: String) {
        self.is_watched = false;
        let seconds = SCAN_UNWATCHED.as_secs();
        self.problem("watch", Some(format!("{why}; it is scanned every {seconds} s instead")));
        self.scan_at = self.scan_at.min(Instant::now() + SCAN_UNWATCHED);
    }

    fn begin_scan(&mut self) {
        let (Some(root), None, false) = (&self.root, &self.scan, self.is_idle()) else { return };
        let below = self.below.pop_front();
        if below.is_none() {
            if Instant::now() < self.scan_at {
                return;
            }
            let every = if self.is_watched { SCAN_EVERY } else { SCAN_UNWATCHED };
            self.scan_at = Instant::now() + every;
        }
        self.scans_below = below.is_some();
        self.scan = Some(scan::start(Scan {
            root: root.clone(),
            rules: self.rules.clone(),
            watch: self.watch.clone(),
            db: self.shared.db.clone(),
            id: self.id,
            symlinks: self.binding.symlinks,
            below,
        }));
    }

    /// Whether directories that appeared are not looked through yet.
    fn looks_below(&self) -> bool {
        !self.below.is_empty() || self.scan.is_some() && self.scans_below
    }

    async fn scanned(&mut self, found: Option<Found>) -> Result<()> {
        match found {
            Some(Found::Paths(paths)) => self.reconcile(paths).await,
            Some(Found::Leftover(leftover)) => self.take_leftover(leftover, true).await,
            Some(Found::End { is_whole, skipped }) => {
                self.scan = None;
                let skipped = skipped?;
                let (reports, folder) = (&self.shared.reports, self.binding.folder);
                if !is_whole {
                    reports.change(folder, |report| report.scanned_part(&skipped));
                    return Ok(());
                }
                reports.change(folder, |report| report.scanned(skipped));
                if self.below.is_empty() && self.held.is_none() {
                    for taker in self.takers.drain(..) {
                        // The caller may have stopped waiting.
                        let _ = taker.send(());
                    }
                }
                Ok(())
            }
            None => {
                self.scan = None;
                anyhow::bail!("the scan ended early")
            }
        }
    }

    // ---- what woke it ----------------------------------------------------------------------------

    async fn on_time(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.settle_at <= now {
            self.settle_at = now + SETTLE_EVERY;
            self.settle().await?;
        }
        if self.save_cursor_at.is_some_and(|at| at <= now) {
            self.save_cursor().await?;
        }
        if self.check_at <= now {
            self.check_at = now + CHECK_EVERY;
            self.check().await?;
        }
        if self.is_idle() {
            return Ok(());
        }
        // See D3.
        if !self.looks_below() {
            let due = self.quiet.take_due(now, ROUND_PATHS);
            self.reconcile(due).await?;
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry().await?;
        }
        Ok(())
    }

    async fn settle(&mut self) -> Result<()> {
        let root = self.root.clone().context("the directory is not open")?;
        let now_ms = self.clock.now_ms();
        for edit in blocking(move || Ok(root.settle(now_ms))).await? {
            self.take_leftover(edit, false).await?;
        }
        Ok(())
    }

    async fn check(&self) -> Result<()> {
        let root = self.root.clone().context("the directory is not open")?;
        blocking(move || Ok(root.check().map_err(Unusable)?)).await
    }

    // ---- the user --------------------------------------------------------------------------------

    async fn obey(&mut self, command: Command) -> Result<()> {
        let (db, id) = (self.shared.db.clone(), self.id);
        let reply = match command {
            Command::Pause(reply) => {
                self.is_paused = true;
                blocking(move || db.set_paused(id, true)).await?;
                self.scan = None;
                reply
            }
            Command::Resume(reply) => {
                self.is_paused = false;
                blocking(move || db.set_paused(id, false)).await?;
                self.begin_anew();
                reply
            }
            Command::Confirm(reply) => {
                self.let_pass(true).await?;
                reply
            }
            Command::TakeIn(reply) => {
                self.let_pass(true).await?;
                self.scan = None;
                self.takers.push(reply);
                return Ok(());
            }
        };
        self.show_now();
        // The caller may have stopped waiting.
        let _ = reply.send(());
        Ok(())
    }

    /// Ends the hold; `all`: whatever comes passes until all is equal.
    pub(super) async fn let_pass(&mut self, all: bool) -> Result<()> {
        let (db, id) = (self.shared.db.clone(), self.id);
        blocking(move || db.set_held(id, None)).await?;
        self.held = None;
        self.brake = Brake::default();
        self.is_confirmed = all;
        self.begin_anew();
        Ok(())
    }

    /// Looks at everything again.
    fn begin_anew(&mut self) {
        self.scan_at = Instant::now();
        self.arrived = None;
        self.retry_at = Some(Instant::now());
        self.is_behind = true;
    }

    /// Holds all changes until the user decides.
    pub(super) async fn hold(&mut self, source: Source) -> Result<()> {
        let text = self.shared.held_text(&source).await?;
        tracing::warn!(dir = %self.binding.dir.display(), "{text}");
        self.held = Some(source);
        self.scan = None;
        let since_ms = self.brake.begun_ms(source).unwrap_or_else(wall_ms);
        let (db, id) = (self.shared.db.clone(), self.id);
        blocking(move || db.set_held(id, Some((source, since_ms)))).await
    }

    /// Whether nothing may be written.
    pub(super) fn is_idle(&self) -> bool {
        self.is_paused || self.held.is_some()
    }

    // ---- reports to the status -------------------------------------------------------------------

    fn tell(&mut self, commits: &watch::Receiver<Commits>) {
        let is_scanned = self.shared.reports.get(&self.binding.folder).is_scanned;
        let is_busy = self.has_pending
            || self.scan.is_some()
            || !self.below.is_empty()
            || self.quiet.len() > 0
            || commits.has_changed().unwrap_or(false);
        if is_scanned && !is_busy {
            self.is_confirmed = false;
        }
        let state = match (is_scanned, is_busy) {
            _ if self.held.is_some() => BindingState::Held,
            _ if self.is_paused => BindingState::Paused,
            (false, _) => BindingState::Scanning,
            (true, true) => BindingState::Syncing,
            (true, false) => BindingState::UpToDate,
        };
        self.show(state);
    }

    fn show_now(&self) {
        let state = match () {
            () if self.held.is_some() => BindingState::Held,
            () if self.is_paused => BindingState::Paused,
            () if self.root.is_none() => BindingState::Stopped,
            () => BindingState::Syncing,
        };
        self.show(state);
    }

    fn show(&self, state: BindingState) {
        self.shared.reports.change(self.binding.folder, |report| report.state = state);
    }

    /// Tells what is wrong; `None`: no longer.
    pub(super) fn problem(&self, kind: &'static str, text: Option<String>) {
        self.shared.reports.change(self.binding.folder, |report| match text {
            Some(text) => {
                report.problems.insert(kind, text);
            }
            None => {
                report.problems.remove(kind);
            }
        });
    }

    /// Counts a path that is left out.
    pub(super) fn skip(&self, reason: &str, path: &FolderPath) {
        self.shared.reports.change(self.binding.folder, |report| {
            report.skip(reason, path);
        });
    }
}

/// Which names a directory cannot tell apart. Where that cannot be found out, it tells all apart.
fn folding(root: &Root, near: &Path) -> Folding {
    root.traits(near).map_or_else(
        |_| Folding::default(),
        |traits| Folding { case: traits.folds_case, normalisation: traits.folds_normalisation },
    )
}

/// Whether the agent is stopping.
fn is_closed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(AskError::Closed)))
}
