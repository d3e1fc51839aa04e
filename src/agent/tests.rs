//! Agents whose QUIC library panics: no data is lost, and all devices end with the same assets.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::core::ids::{Digest, HashAlgorithm};
use crate::net::inject::Panics;
use crate::net::outlive_panics;
use crate::store::choice::StoreChoice;
use crate::store::{Metadata, NewAsset};

/// Far longer than one step takes, far shorter than a hang.
const SOON: Duration = Duration::from_secs(60);

/// The child's deadline: ten panics take ten seconds.
const CHILD_DEADLINE: Duration = Duration::from_secs(180);

const ASSET_BYTES: usize = 20_000;

struct Device {
    agent: Agent,
    panics: Arc<Panics>,
    _lock: Lock,
    _folder: TempDir,
}

impl Device {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(Some(folder.path().join("home"))).unwrap();
        let lock = home.lock().unwrap();
        let panics = Arc::new(Panics::default());
        let config = Config {
            home,
            store: StoreChoice::Embedded,
            offline: true,
            relay: Relay::Off,
            tuning: Tuning::default(),
            thumbnailer: "/nonexistent".into(),
            scrub_rate: ScrubRate::Off,
            forgotten: Default::default(),
            keep: Default::default(),
            net: NetOverrides {
                bind: Some("127.0.0.1:0".parse().unwrap()),
                panics: Some(panics.clone()),
                ..NetOverrides::default()
            },
        };
        let agent = Agent::start(config, &lock).await.unwrap();
        Self { agent, panics, _lock: lock, _folder: folder }
    }

    async fn add(&self, seed: u64) {
        let mut content = vec![0; ASSET_BYTES];
        blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut content);
        let hash = HashAlgorithm::Blake3.hash(&content);
        let digest = Digest { hash, size_bytes: content.len() as u64 };
        let content = Bytes::from(content);
        let asset = NewAsset { digest, content, metadata: Metadata::default() };
        self.agent.handle().store().put(vec![asset]).await.unwrap().remove(0).unwrap();
    }

    fn assets(&self) -> u64 {
        self.agent.handle().status().store.assets
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Makes the library panic `count` times while three devices sync; each panic comes while an asset
/// is under way.
fn survive_panics(count: usize) {
    let log = tracing_subscriber::fmt().with_env_filter("can_sync=debug").with_test_writer();
    let _ = log.try_init();
    outlive_panics();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let devices = [Device::start().await, Device::start().await, Device::start().await];
        for joiner in &devices[1..] {
            let ticket = devices[0].agent.handle().ticket(Duration::from_secs(60)).await.unwrap();
            joiner.agent.handle().pair(ticket.ticket).await.unwrap();
        }
        for round in 0..count {
            let device = &devices[round % devices.len()];
            let before = device.panics.done();
            device.panics.demand(1);
            device.add(round as u64).await;
            until("the library panics", || device.panics.done() > before).await;
            let assets = round as u64 + 1;
            until("all have everything", || devices.iter().all(|d| d.assets() == assets)).await;
        }
        let panics: usize = devices.iter().map(|device| device.panics.done()).sum();
        assert!(panics >= count, "{panics}");
        for device in devices {
            tokio::time::timeout(SOON, device.agent.stop()).await.unwrap().unwrap();
        }
    });
    // An abandoned thread keeps the panic hook, which the test program would take at its end.
    std::process::exit(OUTLIVED);
}

/// The exit status of a child that survived its panics.
const OUTLIVED: i32 = 71;

/// Runs a test of this file in its own process, which is killed when it hangs.
fn in_a_child(test: &str) {
    let mut program = Command::new(std::env::current_exe().unwrap());
    let child = format!("agent::tests::{test}");
    program.args(["--ignored", "--exact", "--nocapture", &child]);
    let log = tempfile::tempfile().unwrap();
    program.stdout(Stdio::null()).stderr(log.try_clone().unwrap());
    let mut child = program.spawn().unwrap();
    let deadline = Instant::now() + CHILD_DEADLINE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
        }
    };
    let mut said = String::new();
    (&log).seek(SeekFrom::Start(0)).unwrap();
    (&log).read_to_string(&mut said).unwrap();
    assert_eq!(status, Some(OUTLIVED), "{said}");
}

#[test]
fn a_panic_of_the_quic_library_ends_no_agent_and_loses_no_asset() {
    in_a_child("child_that_survives_ten_panics");
}

#[test]
#[ignore = "run by a_panic_of_the_quic_library_ends_no_agent_and_loses_no_asset"]
fn child_that_survives_ten_panics() {
    survive_panics(10);
}

#[test]
#[ignore = "takes minutes: cargo test --release --lib a_thousand_panics -- --ignored"]
fn a_thousand_panics_of_the_quic_library_end_no_agent_and_lose_no_asset() {
    survive_panics(1_000);
}
