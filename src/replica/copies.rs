//! Which assets this device wants, and how many copies there are: the facts that
//! [`crate::core::want`] decides by, gathered from the journal, the index and the folders.
//!
//! K1  The want expression is durable before it takes effect.
//! K2  An asset without any metadata here is not wanted yet. The task of `copies::follow` judges it
//!     again when the journal receives its metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use crate::clock::wall_ms;
use crate::core::attributes::{Attribute, AttributeValue};
use crate::core::copies::{Absence, Census, CopiesGoal, SizedHash};
use crate::core::expression::{AssetFacts, Expression};
use crate::core::folder::version::Content;
use crate::core::ids::{FolderId, Hash, NodeId};
use crate::core::journal::asset::JournalRow;
use crate::core::journal::device_events::DeviceState;
use crate::core::journal::op::Value;
use crate::core::want::{Claims, Want};
use crate::state::copies::Copies;
use crate::state::index::{Holder, Index, IndexError, KnownRow};
use crate::state::journal::{Cursor, JournalReader, Owner};

use super::journal::JournalHandle;
use super::status::{CensusStatus, CopiesStatus};

/// The model of the record with the group's goal, and its id.
pub const GOAL_MODEL: &str = "copies";
/// See [`GOAL_MODEL`].
pub const GOAL_ID: &[u8] = b"goal";
/// The field with the number of copies.
pub const GOAL_COPIES: &str = "copies";
/// The field with the number of sites.
pub const GOAL_SITES: &str = "sites";

/// The most copies or sites that a group may want: more devices than a group of one person has.
pub const GOAL_MAX: u64 = 64;

/// The assets judged at a time.
pub(crate) const PAGE: usize = 512;

/// The pages that one call of [`Keeper::choose`] reads.
const CHOOSE_PAGES: usize = 8;

/// The most assets that are remembered as files of folders. Beyond, `folder=` does not match more.
const FOLDER_FILES_MAX: usize = 4_000_000;

/// The changes of folders read at a time.
const FOLDER_CHANGES: usize = 4096;

/// Returns whether a file of a bound folder waits for each of the hashes.
pub type Waiting = Arc<dyn Fn(&[Hash]) -> Result<Vec<bool>> + Send + Sync>;

/// What this device wants and how many copies there are. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    node_id: NodeId,
    index: Index,
    copies: Copies,
    journal: JournalHandle,
    waiting: Waiting,
    want: watch::Sender<Want>,
    view: watch::Sender<CopiesView>,
    awaited: watch::Sender<Awaited>,
    folder_files: Arc<Mutex<FolderFiles>>,
}

/// The copies as the status shows them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CopiesView {
    /// The goal of the group.
    pub goal: CopiesGoal,
    /// The site of each device that has one.
    pub sites: BTreeMap<NodeId, String>,
    /// What each device wants that does not want everything.
    pub wants: BTreeMap<NodeId, String>,
    /// How many assets have how many copies, once they were counted.
    pub census: Option<Census>,
    /// The other devices of the group when they were counted.
    pub counted: BTreeSet<NodeId>,
    /// Since when every count found assets with only one copy, ms since the Unix epoch.
    pub one_copy_since_ms: Option<u64>,
}

/// The other devices of the group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Awaited {
    /// All of them.
    pub(crate) members: BTreeSet<NodeId>,
    /// Those that are connected and will be confirmed as holders of what both know.
    pub(crate) confirming: BTreeSet<NodeId>,
}

/// A decision about an asset that is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the asset is wanted.
    pub why: Absence,
    /// On how many other devices it is known to be.
    pub copies: u64,
}

/// What another expression would change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WantChange {
    /// Assets that would come.
    pub come: u64,
    /// Their bytes, as far as these are known.
    pub come_bytes: u64,
    /// Those of them whose size is not known.
    pub come_unknown: u64,
    /// Assets that are here and would not be wanted. They stay until they are evicted.
    pub go: u64,
    /// Their bytes.
    pub go_bytes: u64,
    /// Assets that are wanted now, are not here yet, and would not be wanted.
    pub stop: u64,
    /// Assets that would be wanted, here or not.
    pub wanted: u64,
}

/// An asset here that an expression chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChosenAsset {
    /// The asset.
    pub hash: Hash,
    /// On how many other devices it is known to be.
    pub copies: u64,
}

/// The files of shared folders by their content.
#[derive(Debug, Default)]
struct FolderFiles {
    cursor: Option<Cursor>,
    folders: BTreeMap<Hash, BTreeSet<FolderId>>,
}

impl Keeper {
    /// The keeper of an agent.
    ///
    /// # Errors
    /// What is wanted cannot be read.
    pub fn new(
        node_id: NodeId,
        index: Index,
        copies: Copies,
        journal: JournalHandle,
        waiting: Waiting,
    ) -> Result<Self> {
        let want = watch::Sender::new(copies.want()?);
        let (view, folder_files) = (watch::Sender::default(), Arc::default());
        let awaited = watch::Sender::default();
        Ok(Self { node_id, index, copies, journal, waiting, want, view, awaited, folder_files })
    }

    /// What this device wants.
    pub fn want(&self) -> Want {
        self.want.borrow().clone()
    }

    /// Changes with what is wanted.
    pub fn wants(&self) -> watch::Receiver<Want> {
        self.want.subscribe()
    }

    /// Whether this device does not take whatever comes.
    pub fn chooses(&self) -> bool {
        !self.want.borrow().is_all() || self.copies.lets_go()
    }

    /// The copies as the status shows them.
    pub fn view(&self) -> CopiesView {
        self.view.borrow().clone()
    }

    /// Changes with [`Keeper::view`].
    pub(crate) fn views(&self) -> watch::Receiver<CopiesView> {
        self.view.subscribe()
    }

    /// Notes whose confirmations are awaited, for the next count.
    pub(crate) fn await_confirmations(&self, awaited: Awaited) {
        self.awaited.send_if_modified(|now| {
            let is_new = *now != awaited;
            *now = awaited;
            is_new
        });
    }

    /// Whose confirmations are awaited.
    pub(crate) fn awaited(&self) -> Awaited {
        self.awaited.borrow().clone()
    }

    /// The number of assets that are held here.
    pub(crate) fn held(&self) -> u64 {
        self.index.head().held
    }

    /// The part of the status; `missing` is what the engine counts.
    pub(crate) fn status(&self, missing: u64) -> CopiesStatus {
        let (head, view, expression) = (self.index.head(), self.view(), self.want().expression);
        // Of a device that came after the count, nothing was known then.
        let is_current = self.awaited.borrow().members.is_subset(&view.counted);
        let census = view.census.filter(|_| is_current).map(|census| CensusStatus {
            known: census.known,
            nowhere: census.nowhere,
            one_copy: census.one_copy,
            below_goal: census.below_goal,
            unconfirmed: census.unconfirmed,
        });
        CopiesStatus {
            wants: expression.map(|expression| expression.to_string()).unwrap_or_default(),
            missing,
            unwanted: head.count.saturating_sub(head.held).saturating_sub(head.missing),
            site: view.sites.get(&self.node_id).cloned().unwrap_or_default(),
            goal_copies: view.goal.copies,
            goal_sites: view.goal.sites,
            census,
            one_copy_since_ms: view.one_copy_since_ms,
        }
    }

    /// Sets what this device wants; durable on return.
    ///
    /// # Errors
    /// It cannot be written; what was wanted before is still wanted.
    pub async fn set_want(&self, want: Want) -> Result<()> {
        let (copies, set) = (self.copies.clone(), want.clone());
        spawn_blocking(move || copies.set_want(&set)).await?.context("writing copies.db")?;
        self.want.send_replace(want);
        Ok(())
    }

    /// Decides about assets that are not here, in their order.
    ///
    /// # Errors
    /// The journal or the index cannot be read.
    pub async fn judge(&self, assets: Vec<SizedHash>) -> Result<Vec<Verdict>> {
        let want = self.want();
        let whys = self.judge_by(&want, assets.clone()).await?;
        // The most endangered ones are fetched first.
        let missing = assets.iter().zip(&whys).filter(|(_, why)| **why == Absence::Missing);
        let missing = missing.map(|((hash, _), _)| *hash).collect();
        let mut copies = self.copies_of(missing).await?.into_iter();
        let verdict = |why| Verdict {
            why,
            copies: if why == Absence::Missing { copies.next().unwrap_or(0) } else { 0 },
        };
        Ok(whys.into_iter().map(verdict).collect())
    }

    async fn judge_by(&self, want: &Want, assets: Vec<SizedHash>) -> Result<Vec<Absence>> {
        let hashes: Vec<Hash> = assets.iter().map(|(hash, _)| *hash).collect();
        let (waiting, copies, asked) = (self.waiting.clone(), self.copies.clone(), hashes.clone());
        let claims = spawn_blocking(move || -> Result<Vec<Claims>> {
            let evicted = copies.are_evicted(&asked).context("reading copies.db")?;
            let claims = evicted.into_iter().zip((waiting)(&asked)?);
            let claims = claims
                .map(|(is_evicted, is_in_bound_folder)| Claims { is_evicted, is_in_bound_folder });
            Ok(claims.collect())
        });
        let claims = claims.await??;
        let mut facts = self.facts(want, &assets).await?;
        if want.expression.as_ref().is_some_and(Expression::depends_on_copies) {
            let copies = self.copies_of(hashes.clone()).await?;
            facts.iter_mut().zip(copies).for_each(|(facts, copies)| facts.copies = Some(copies));
        }
        let wanted = facts.iter().zip(claims).map(|(facts, claims)| want.wants(facts, claims));
        let why = |wanted| if wanted { Absence::Missing } else { Absence::Unwanted };
        Ok(wanted.map(why).collect())
    }

    /// On how many peers each asset is known to be, in their order.
    async fn copies_of(&self, hashes: Vec<Hash>) -> Result<Vec<u64>> {
        let index = self.index.clone();
        let copies = move || {
            let copies = hashes.iter().map(|hash| Ok(index.holders(hash)?.len() as u64));
            copies.collect::<Result<_, IndexError>>()
        };
        spawn_blocking(copies).await?.context("reading the index")
    }

    /// What is known about assets, in their order; without their copies.
    async fn facts(&self, want: &Want, assets: &[SizedHash]) -> Result<Vec<AssetFacts>> {
        let Some(expression) = want.expression.clone() else {
            return Ok(vec![AssetFacts::default(); assets.len()]);
        };
        self.facts_for(&expression, assets).await
    }

    /// What is known about assets, in their order, as far as an expression asks for it; without their
    /// copies.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn facts_for(
        &self,
        expression: &Expression,
        assets: &[SizedHash],
    ) -> Result<Vec<AssetFacts>> {
        let now_ms = wall_ms();
        let in_folders = match expression.depends_on_folders() {
            true => Some(self.folders_of(assets).await?),
            false => None,
        };
        let assets = assets.to_vec();
        let read = move |reader: &JournalReader| {
            let hashes: Vec<Hash> = assets.iter().map(|(hash, _)| *hash).collect();
            let origins = reader.origins(&hashes)?;
            let mut names = BTreeMap::new();
            let mut facts = Vec::with_capacity(assets.len());
            for ((hash, size_bytes), origin) in assets.into_iter().zip(origins) {
                let row = reader.asset(&hash)?;
                let mut known = AssetFacts { size_bytes, ..AssetFacts::default() };
                if row.alive {
                    describe(&mut known, &row);
                }
                if let Some((device, added_ms)) = origin {
                    known.age_ms = Some(now_ms.saturating_sub(added_ms));
                    let name = match names.get(&device) {
                        Some(name) => Clone::clone(name),
                        None => {
                            let fields = reader.device_fields(&device)?;
                            let state = fields.as_ref().map(DeviceState::from_fields);
                            let name = state.map(|state| state.name).unwrap_or_default();
                            names.insert(device, name.clone());
                            name
                        }
                    };
                    known.added_by = Some(vec![name, device.to_string()]);
                }
                facts.push(known);
            }
            Ok(facts)
        };
        let mut facts = self.journal.read(read).await?;
        if let Some(in_folders) = in_folders {
            facts.iter_mut().zip(in_folders).for_each(|(facts, names)| facts.folders = Some(names));
        }
        Ok(facts)
    }

    /// The assets here that an expression chooses, of those numbered above `after`, and the number from
    /// which to go on. Reads a bounded number of assets, so it may choose none although there are more.
    ///
    /// # Errors
    /// The journal or the index cannot be read.
    pub async fn choose(
        &self,
        expression: &Expression,
        mut after: u64,
    ) -> Result<(Vec<ChosenAsset>, Option<u64>)> {
        let mut chosen = Vec::new();
        for _ in 0..CHOOSE_PAGES {
            let index = self.index.clone();
            let rows = spawn_blocking(move || index.rows(false, after, PAGE)).await?;
            let (rows, more) = rows.context("reading the index")?;
            let held: Vec<SizedHash> = rows
                .iter()
                .filter(|row| row.why.is_none())
                .map(|row| (row.hash, row.size_bytes))
                .collect();
            let facts = self.facts_for(expression, &held).await?;
            let copies = self.copies_of(held.iter().map(|(hash, _)| *hash).collect()).await?;
            for (((hash, _), mut facts), copies) in held.into_iter().zip(facts).zip(copies) {
                facts.copies = Some(copies);
                if expression.matches(&facts) {
                    chosen.push(ChosenAsset { hash, copies });
                }
            }
            match rows.last() {
                Some(last) if more => after = last.seq,
                _ => return Ok((chosen, None)),
            }
        }
        Ok((chosen, Some(after)))
    }

    /// The names of the shared folders that the assets are in. An asset that left a folder counts as in
    /// it until the next start.
    async fn folders_of(&self, assets: &[SizedHash]) -> Result<Vec<BTreeSet<String>>> {
        let names: BTreeMap<FolderId, String> = self
            .journal
            .read(|reader| {
                let records = reader.records(
                    crate::core::folder::FOLDER_MODEL,
                    Some(Owner::Shared),
                    &[],
                    None,
                    super::folders::FOLDERS_MAX,
                )?;
                Ok(records.records)
            })
            .await?
            .iter()
            .filter_map(super::folders::folder)
            .map(|folder| (folder.id, folder.name))
            .collect();
        loop {
            let cursor = self.folder_files.lock().cursor;
            let read =
                move |reader: &JournalReader| reader.file_changes(cursor.as_ref(), FOLDER_CHANGES);
            let Some(page) = self.journal.read(read).await? else { break };
            let mut files = self.folder_files.lock();
            for row in page.rows {
                let Content::File { hash, .. } = row.version.content else { continue };
                if files.folders.len() < FOLDER_FILES_MAX {
                    files.folders.entry(hash).or_default().insert(row.folder);
                }
            }
            files.cursor = Some(page.cursor);
            if !page.more {
                break;
            }
        }
        let files = self.folder_files.lock();
        let of = |(hash, _): &SizedHash| {
            let folders = files.folders.get(hash).into_iter().flatten();
            folders.filter_map(|id| names.get(id).cloned()).collect()
        };
        Ok(assets.iter().map(of).collect())
    }

    /// Why an asset is not here (`None`: it is not known; `Some(None)`: it is here), and the peers that
    /// are known to hold it. Devices that left the group may be among them.
    ///
    /// # Errors
    /// The index cannot be read.
    pub async fn holders(&self, hash: Hash) -> Result<(Option<Option<Absence>>, Vec<Holder>)> {
        let index = self.index.clone();
        let read = move || anyhow::Ok((index.why(&hash)?, index.holders(&hash)?));
        spawn_blocking(read).await?.context("reading the index")
    }

    /// Says what another expression would change.
    ///
    /// # Errors
    /// The journal or the index cannot be read.
    pub async fn dry_run(&self, want: &Want) -> Result<WantChange> {
        let mut change = WantChange::default();
        let mut after = 0;
        loop {
            let index = self.index.clone();
            let (rows, more) = spawn_blocking(move || index.rows(false, after, PAGE))
                .await?
                .context("reading the index")?;
            let Some(last) = rows.last() else { break };
            after = last.seq;
            let whys = self.judge_by(want, sized(&rows)).await?;
            for (row, why) in rows.iter().zip(whys) {
                let bytes = row.size_bytes.unwrap_or(0);
                change.wanted += u64::from(why == Absence::Missing);
                match (row.why, why) {
                    (None, Absence::Unwanted) => {
                        change.go += 1;
                        change.go_bytes += bytes;
                    }
                    (Some(Absence::Unwanted), Absence::Missing) => {
                        change.come += 1;
                        change.come_bytes += bytes;
                        change.come_unknown += u64::from(row.size_bytes.is_none());
                    }
                    (Some(Absence::Missing), Absence::Unwanted) => change.stop += 1,
                    (None | Some(Absence::Missing), Absence::Missing)
                    | (Some(Absence::Unwanted), Absence::Unwanted) => {}
                }
            }
            if !more {
                break;
            }
        }
        Ok(change)
    }

    /// Reads the goal of the group, and the sites and wants of its devices, into the view.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub(crate) async fn read_group(&self) -> Result<()> {
        let me = self.node_id;
        let read = move |reader: &JournalReader| {
            let goal = reader.record(GOAL_MODEL, Owner::Shared, GOAL_ID)?;
            let group = reader.group_state(&me)?;
            let mut devices = Vec::new();
            for member in group.map(|group| group.members.members).unwrap_or_default() {
                let fields = reader.device_fields(&member.node_id)?;
                let state = fields.as_ref().map(DeviceState::from_fields).unwrap_or_default();
                devices.push((member.node_id, state));
            }
            Ok((goal, devices))
        };
        let (record, devices) = self.journal.read(read).await?;
        let field = |name: &str| match record.as_ref()?.fields.get(name)? {
            Some(Value::Int(n)) => u64::try_from(*n).ok().filter(|n| (1..=GOAL_MAX).contains(n)),
            _ => None,
        };
        let default = CopiesGoal::default();
        let goal = CopiesGoal {
            copies: field(GOAL_COPIES).unwrap_or(default.copies),
            sites: field(GOAL_SITES).unwrap_or(default.sites),
        };
        let told = |text: fn(&DeviceState) -> &String| -> BTreeMap<NodeId, String> {
            let told = devices.iter().map(|(node_id, state)| (*node_id, text(state).clone()));
            told.filter(|(_, text)| !text.is_empty()).collect()
        };
        let (sites, wants) = (told(|state| &state.site), told(|state| &state.wants));
        self.view.send_if_modified(|view| {
            let is_new = (&view.goal, &view.sites, &view.wants) != (&goal, &sites, &wants);
            (view.goal, view.sites, view.wants) = (goal, sites, wants);
            is_new
        });
        Ok(())
    }

    /// Counts the copies of all assets, into the view. `confirming`: see [`Awaited`].
    ///
    /// # Errors
    /// The journal or the index cannot be read.
    pub(crate) async fn count(&self, confirming: BTreeSet<NodeId>) -> Result<()> {
        let me = self.node_id;
        let read = move |reader: &JournalReader| reader.group_state(&me);
        let group = self.journal.read(read).await?;
        let view = self.view();
        let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
        let mut next = 0;
        let mut site_of = |node_id: &NodeId| {
            let mut number = || {
                next += 1;
                next
            };
            // A device without a site is a site of its own.
            match view.sites.get(node_id) {
                Some(site) => *numbers.entry(site.clone()).or_insert_with(number),
                None => number(),
            }
        };
        let own_site = site_of(&me);
        let members = group.map(|group| group.members.members).unwrap_or_default();
        let others = members.iter().filter(|member| member.node_id != me);
        let sites: Vec<(NodeId, usize)> =
            others.map(|member| (member.node_id, site_of(&member.node_id))).collect();
        let (index, goal) = (self.index.clone(), view.goal);
        let counted = sites.iter().map(|(node_id, _)| *node_id).collect();
        let count = move || index.census(goal, &sites, own_site, &confirming);
        let census = spawn_blocking(count).await?.context("reading the index")?;
        self.view.send_if_modified(|view| {
            view.one_copy_since_ms = match (census.one_copy, census.unconfirmed) {
                (0, 0) => None,
                (0, _) => view.one_copy_since_ms,
                _ => view.one_copy_since_ms.or(Some(wall_ms())),
            };
            let is_new = view.census != Some(census) || view.counted != counted;
            (view.census, view.counted) = (Some(census), counted);
            is_new
        });
        Ok(())
    }
}

/// The hashes and sizes of rows.
pub(crate) fn sized(rows: &[KnownRow]) -> Vec<SizedHash> {
    rows.iter().map(|row| (row.hash, row.size_bytes)).collect()
}

/// Fills in what the journal says about an asset.
fn describe(facts: &mut AssetFacts, row: &JournalRow) {
    let text = |attribute| match row.attribute(attribute) {
        Some(AttributeValue::Text(text)) => text.clone(),
        Some(AttributeValue::TimeMs(_)) | None => String::new(),
    };
    facts.tags = (!row.is_too_large).then(|| row.canonical().tags);
    facts.name = Some(text(Attribute::Name));
    facts.media_type = Some(text(Attribute::MediaType));
}
