//! The scrub: reads every asset of the store again within a cycle, and lets the store look a second
//! time at what it finds wrong. [`crate::core::scrub`] has the order and the rate.
//!
//! C1  It never deletes and never repairs. What the store marks as damaged is missing from then on,
//!     and comes back as missing assets do.
//! C2  It reads no faster than its rate, a step at a time, and stops by itself when the disk fails
//!     again and again. It never stops the agent.
//! C3  How far it has come is saved every [`SAVE_EVERY`] and at the end of a cycle. A crash costs
//!     what was read since.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::status::{ScrubState, ScrubStatus};
use crate::clock::wall_ms;
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::core::scrub::{CYCLE_MS, Cycle, ScrubRate, part_of};
use crate::state::home::Home;
use crate::state::index::Index;
use crate::store::embedded::EmbeddedStore;
use crate::store::reading::{Reading, Step, Verdict, look_at_small};
use crate::store::{Condition, SMALL_BYTES_MAX, Store, StoreError};

/// How often the position is saved: reading this much again costs little.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// How long the scrub waits after the start, to leave the disk to other work. With a rate that a
/// user chose it begins at once.
const START_WAIT: Duration = Duration::from_secs(300);

/// The pause before the next try when the store does not answer. Often it is only busy for a moment.
const RETRY_WAIT: Duration = Duration::from_secs(10);

/// The longest sleep until the next cycle: the wall clock may be set meanwhile.
const REST_MAX: Duration = Duration::from_secs(3600);

/// How many assets are read from the index at a time.
const PAGE_ASSETS: usize = 64;

/// The most bytes of small assets read at once.
const SMALL_BATCH_BYTES: u64 = 1024 * 1024;

/// After this many assets in a row that are damaged or cannot be read, the disk counts as failing.
const FAILURES_MAX: u32 = 32;

/// How many damaged assets are listed at a time, to be read again.
const MARKED_ASSETS: usize = 64;

pub(crate) struct Scrub {
    pub(crate) store: Arc<dyn Store>,
    /// `store` as the embedded store; `None` if another program serves the store.
    pub(crate) embedded: Option<EmbeddedStore>,
    pub(crate) index: Index,
    pub(crate) home: Home,
    pub(crate) rate: ScrubRate,
    /// What the agent shows of the scrub.
    pub(crate) status: watch::Sender<ScrubStatus>,
    /// Makes the catalogue list the store: a foreign one does not tell what was found here.
    pub(crate) nudge: Arc<Notify>,
}

/// The saved state of the scrub.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Saved {
    /// The cycle under way, or the last one.
    cycle: Option<Cycle>,
    /// When the last cycle ended, ms since the Unix epoch; `None` while one is under way.
    ended_ms: Option<u64>,
    /// When a cycle last came to its end.
    finished_ms: Option<u64>,
    strays: u64,
}

/// Why a cycle does not go on.
enum Trouble {
    /// The store does not answer.
    Later(String),
    /// Reading fails again and again.
    Stop(String),
}

/// A cycle being gone through.
struct Pass {
    saved: Saved,
    algorithm: HashAlgorithm,
    rate_bytes: u64,
    /// When the rate allows the next read.
    free_at: Instant,
    save_at: Instant,
    show_at: Instant,
    /// How many assets in a row failed.
    failures: u32,
}

impl Scrub {
    /// Runs until dropped, or until it gives up.
    pub(crate) async fn run(self) {
        if self.rate == ScrubRate::Off {
            return;
        }
        if self.rate == ScrubRate::Auto {
            sleep(START_WAIT).await;
        }
        let mut saved = self.load();
        loop {
            let now_ms = wall_ms();
            let due_ms = match (saved.cycle, saved.ended_ms) {
                // A clock that was set back must not put the next cycle off for years.
                (Some(cycle), Some(_)) if cycle.begun_ms <= now_ms => cycle.begun_ms + CYCLE_MS,
                _ => now_ms,
            };
            if due_ms > now_ms {
                self.show(&saved, ScrubState::Resting, 0, None);
                sleep(Duration::from_millis(due_ms - now_ms).min(REST_MAX)).await;
                continue;
            }
            if saved.cycle.is_none() || saved.ended_ms.is_some() {
                let cycle = Some(Cycle::begin(now_ms, rand::random()));
                saved = Saved { cycle, ended_ms: None, strays: 0, ..saved };
            }
            match self.go_through(&mut saved).await {
                Ok(()) => {
                    tracing::info!(?saved.cycle, "every asset of the store was read again");
                }
                Err(Trouble::Later(reason)) => {
                    tracing::info!(reason, "the scrub waits for the store");
                    self.show(&saved, ScrubState::Waiting, 0, None);
                    sleep(RETRY_WAIT).await;
                }
                Err(Trouble::Stop(reason)) => {
                    tracing::warn!(reason, "the scrub stops until the next start");
                    self.save(&saved).await;
                    self.show(&saved, ScrubState::Stopped, 0, Some(reason));
                    return;
                }
            }
        }
    }

    async fn go_through(&self, saved: &mut Saved) -> Result<(), Trouble> {
        let info = self.store.info().await.map_err(|error| Trouble::Later(error.to_string()))?;
        let now = Instant::now();
        let mut pass = Pass {
            saved: *saved,
            algorithm: info.hash_algorithm,
            rate_bytes: self.rate.bytes_per_s(info.asset_bytes).unwrap_or(1).max(1),
            free_at: now,
            save_at: now + SAVE_EVERY,
            show_at: now,
            failures: 0,
        };
        let gone = self.visit_all(&mut pass).await;
        if gone.is_ok() {
            let now_ms = wall_ms();
            (pass.saved.ended_ms, pass.saved.finished_ms) = (Some(now_ms), Some(now_ms));
            self.save(&pass.saved).await;
        }
        *saved = pass.saved;
        gone
    }

    async fn visit_all(&self, pass: &mut Pass) -> Result<(), Trouble> {
        while let Some(part) = pass.cycle().part() {
            let page = self.page(pass.cycle().after(), part).await?;
            self.visit(pass, &page).await?;
            if page.is_empty() {
                self.look_for_strays(pass, part).await?;
                pass.cycle().leave_part();
                self.note(pass).await;
            }
        }
        self.look_at_marked(pass).await
    }

    /// The next assets of a part.
    async fn page(&self, after: Option<Hash>, part: u16) -> Result<Vec<Digest>, Trouble> {
        let index = self.index.clone();
        let read = move || -> anyhow::Result<Vec<Digest>> {
            let (mut hashes, _) = index.above(after, u64::MAX, PAGE_ASSETS)?;
            hashes.retain(|hash| part_of(hash) == part);
            let sizes = index.sizes(&hashes)?;
            let sized = hashes.into_iter().zip(sizes);
            Ok(sized.map(|(hash, size)| Digest { hash, size_bytes: size.unwrap_or(0) }).collect())
        };
        let read = spawn_blocking(read).await.context("a worker thread").flatten();
        read.map_err(|error| Trouble::Later(format!("reading the index: {error:#}")))
    }

    async fn visit(&self, pass: &mut Pass, page: &[Digest]) -> Result<(), Trouble> {
        let mut rest = page;
        while let Some(first) = rest.first() {
            let small = small_batch(rest);
            if small == 0 {
                self.read_large(pass, *first).await?;
                rest = &rest[1..];
                continue;
            }
            let batch;
            (batch, rest) = rest.split_at(small);
            match look_at_small(&*self.store, pass.algorithm, batch).await {
                Ok(verdicts) => {
                    pass.pay(batch.iter().map(|digest| digest.size_bytes).sum()).await;
                    for (digest, verdict) in batch.iter().zip(verdicts) {
                        self.conclude(pass, *digest, verdict).await?;
                    }
                }
                Err(error) => {
                    for digest in batch {
                        self.failed(pass, *digest, &error).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn read_large(&self, pass: &mut Pass, digest: Digest) -> Result<(), Trouble> {
        let from_bytes = pass.cycle().read_to(&digest.hash);
        let store = self.store.clone();
        let reading = Reading::begin(store, pass.algorithm, digest, from_bytes).await;
        let mut reading = match reading {
            Ok(reading) => reading,
            Err(error) => return self.failed(pass, digest, &error).await,
        };
        loop {
            match reading.step().await {
                Ok(Step::Read(bytes)) => {
                    pass.cycle().reading(digest.hash, reading.at_bytes());
                    pass.pay(bytes).await;
                    self.note(pass).await;
                }
                Ok(Step::End(verdict)) => return self.conclude(pass, digest, verdict).await,
                Err(error) => return self.failed(pass, digest, &error).await,
            }
        }
    }

    /// Lets the store look again at what was found wrong.
    async fn conclude(
        &self,
        pass: &mut Pass,
        digest: Digest,
        verdict: Verdict,
    ) -> Result<(), Trouble> {
        if verdict == Verdict::Wrong {
            let looked = self.store.verify(digest.hash).await;
            pass.pay(digest.size_bytes).await;
            match looked {
                Ok(Condition::Damaged(wrong)) => {
                    let (hash, wrong_bytes) = (digest.hash, wrong.bytes());
                    tracing::warn!(%hash, wrong_bytes, "the scrub found a damaged asset");
                    pass.cycle().damaged += 1;
                    self.nudge.notify_one();
                    pass.fail("the assets read last are all damaged")?;
                }
                Ok(Condition::Whole | Condition::Absent) => pass.failures = 0,
                Err(error) => return self.failed(pass, digest, &error).await,
            }
        } else {
            pass.failures = 0;
        }
        pass.cycle().visited(digest.hash);
        self.note(pass).await;
        Ok(())
    }

    /// Counts an asset that the store cannot read, and goes on.
    async fn failed(
        &self,
        pass: &mut Pass,
        digest: Digest,
        error: &StoreError,
    ) -> Result<(), Trouble> {
        if error.is_temporary() {
            return Err(Trouble::Later(error.to_string()));
        }
        tracing::warn!(hash = %digest.hash, %error, "the scrub cannot read an asset");
        pass.fail(&error.to_string())?;
        pass.cycle().visited(digest.hash);
        self.note(pass).await;
        Ok(())
    }

    /// Names files that belong to no asset, in the folder that a part begins.
    async fn look_for_strays(&self, pass: &mut Pass, part: u16) -> Result<(), Trouble> {
        let Some(store) = &self.embedded else { return Ok(()) };
        let (fan, rest) = ((part >> 4) as u8, part & 0xf);
        if rest != 0 {
            return Ok(());
        }
        match store.strays(fan).await {
            Ok(strays) => {
                for path in &strays {
                    let path = path.display();
                    tracing::warn!(%path, "a file in the store's folder belongs to no asset");
                }
                pass.saved.strays += strays.len() as u64;
                Ok(())
            }
            Err(error) if error.is_temporary() => Err(Trouble::Later(error.to_string())),
            Err(error) => pass.fail(&error.to_string()),
        }
    }

    /// Looks at the assets that are marked as damaged: the disk may have read them wrong.
    async fn look_at_marked(&self, pass: &mut Pass) -> Result<(), Trouble> {
        let Some(store) = &self.embedded else { return Ok(()) };
        let later = |error: StoreError| Trouble::Later(error.to_string());
        let mut after = 0;
        loop {
            let marked = store.marked(after, MARKED_ASSETS).await.map_err(later)?;
            let Some((last, _)) = marked.last() else { return Ok(()) };
            after = *last;
            for (_, digest) in marked {
                if let Err(error) = self.store.verify(digest.hash).await {
                    let hash = digest.hash;
                    tracing::warn!(%hash, %error, "the scrub cannot read a damaged asset");
                }
                pass.pay(digest.size_bytes).await;
            }
        }
    }

    /// Saves and shows how far the cycle has come, every now and then.
    async fn note(&self, pass: &mut Pass) {
        let now = Instant::now();
        if now >= pass.save_at {
            pass.save_at = now + SAVE_EVERY;
            self.save(&pass.saved).await;
        }
        if now >= pass.show_at {
            pass.show_at = now + SHOW_EVERY;
            self.show(&pass.saved, ScrubState::Running, pass.rate_bytes, None);
        }
    }

    fn show(&self, saved: &Saved, state: ScrubState, rate: u64, stopped: Option<String>) {
        let cycle = saved.cycle.as_ref();
        self.status.send_replace(ScrubStatus {
            state,
            rate_bytes: rate,
            begun_ms: cycle.map(|cycle| cycle.begun_ms),
            finished_ms: saved.finished_ms,
            done_permille: cycle.map_or(0, Cycle::done_permille),
            read_bytes: cycle.map_or(0, |cycle| cycle.read_bytes),
            assets: cycle.map_or(0, |cycle| cycle.assets),
            damaged: cycle.map_or(0, |cycle| cycle.damaged),
            strays: saved.strays,
            stopped,
        });
    }

    /// What an earlier run saved. A file that cannot be read only costs a cycle from its start.
    fn load(&self) -> Saved {
        let Some(json) = self.home.scrub() else { return Saved::default() };
        serde_json::from_slice(&json).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read how far the scrub was: it starts from the beginning");
            Saved::default()
        })
    }

    async fn save(&self, saved: &Saved) {
        let (home, saved) = (self.home.clone(), *saved);
        let write = move || home.write_scrub(&serde_json::to_vec(&saved)?);
        match spawn_blocking(write).await.context("a worker thread").flatten() {
            Ok(()) => {}
            Err(error) => tracing::warn!("cannot save how far the scrub is: {error:#}"),
        }
    }
}

impl Pass {
    fn cycle(&mut self) -> &mut Cycle {
        self.saved.cycle.get_or_insert_with(|| Cycle::begin(wall_ms(), 0))
    }

    /// Counts bytes that were read, and waits until the rate allows more.
    async fn pay(&mut self, bytes: u64) {
        self.cycle().read_bytes += bytes;
        let micros = bytes.saturating_mul(1_000_000) / self.rate_bytes;
        self.free_at = self.free_at.max(Instant::now()) + Duration::from_micros(micros);
        sleep_until(self.free_at).await;
    }

    /// Counts an asset that is damaged or cannot be read.
    fn fail(&mut self, reason: &str) -> Result<(), Trouble> {
        self.failures += 1;
        match self.failures < FAILURES_MAX {
            true => Ok(()),
            false => Err(Trouble::Stop(format!("{FAILURES_MAX} failures in a row: {reason}"))),
        }
    }
}

/// How many assets at the start are read at once; 0 if the first is large.
fn small_batch(digests: &[Digest]) -> usize {
    let mut bytes = 0;
    let fits = |digest: &&Digest| {
        bytes += digest.size_bytes;
        digest.size_bytes <= SMALL_BYTES_MAX && bytes <= SMALL_BATCH_BYTES
    };
    digests.iter().take_while(fits).count()
}
