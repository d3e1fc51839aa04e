//! What moving assets costs: two agents of the real program, in processes and homes of their own,
//! beside the yardsticks of the same minute: one raw QUIC stream with the same settings, and plain
//! files with fsync.
//!
//! `cargo bench --bench transfer [-- SUBSET ... --rounds N --json PATH]`; subsets are `mixed`, `large`
//! (`--large-mib MIB` each), `small` (`--small ASSETS`), `live`, `busy`, `fanout`, and of devices that
//! hold `--stock ASSETS` each `reconnect` and `idle`. Every round measures a subset and its yardsticks
//! one after another, and takes their ratio: that survives a busy machine, where the figures
//! themselves do not. Linux only: CPU time, memory and writes are read from `/proc`.
//!
//! "Connected" counts from the moment an agent shows the session as up, "paired" from the start of
//! `can-sync pair` and so has a program start and the pairing in it.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod device;
mod yardstick;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use can_sync::core::ids::{Digest, HashAlgorithm};
use serde_json::json;
use tempfile::TempDir;

use can_sync::store::embedded::{EmbeddedStore, Options};
use can_sync::store::{Metadata, NewAsset, Store as _};
use device::{Course, Device, Events, Http, pair, start_both, wait_for_both, wait_until_held};
use yardstick::{RawPeer, Transport, copy_with_fsync, fsync_4k, rsync, serve_raw};

/// What the original system reports for its 102 mixed assets, both ways together.
const ORIGINAL_MB_S: f64 = 63.0;

const MIXED_ASSETS: usize = 102;
const MIXED_BYTES: f64 = 63e6;
const MIXED_SMALLEST: f64 = 1e3;
const MIXED_LARGEST: f64 = 5e6;

const SMALL_BYTES: usize = 4096;

/// Of the assets of which devices hold many.
const STOCK_BYTES: usize = 64;
const PUT_ASSETS: usize = 4096;

/// New on each side while apart.
const NEEDLES: usize = 10;

const FAN_OUT: usize = 5;
const FAN_OUT_ASSETS: usize = 32;
const FAN_OUT_BYTES: usize = 4 << 20;

const LARGE_ASSETS: usize = 2;

const LIVE_ASSETS: usize = 200;

/// Large assets that cross while live pushes are measured, and pushes after them to compare with.
const BUSY_ASSETS: usize = 8;
const BUSY_QUIET_ASSETS: usize = 50;

/// Between two live assets: longer than what one leaves to be done, and not in step with any timer.
const LIVE_PAUSES_MS: [u64; 3] = [23, 37, 53];

/// Before measuring idleness, for what is done once, some seconds after the last transfer.
const SETTLE: Duration = Duration::from_secs(15);
/// How long two devices are watched for what follows their agreement.
const AFTERMATH: Duration = Duration::from_secs(3);
/// What a device with nothing to do writes meanwhile, at most.
const IDLE_BYTES: f64 = 100_000.0;
const IDLE: Duration = Duration::from_secs(60);

const MB: f64 = 1e6;
const MIB: f64 = 1024.0 * 1024.0;

/// Runs one subset once.
type Measure = fn(&Args, &mut Report);

fn main() {
    let mut args = Args::parse();
    if let Some(transport) = args.raw_peer {
        return serve_raw(transport);
    }
    let mut report = Report::default();
    let subsets: [(&str, Measure); 8] = [
        ("mixed", mixed),
        ("large", large),
        ("small", small),
        ("live", live),
        ("busy", busy),
        ("fanout", fan_out),
        ("reconnect", reconnect),
        ("idle", idle),
    ];
    if args.subsets.is_empty() {
        args.subsets = subsets.iter().map(|(name, _)| (*name).to_owned()).collect();
    }
    for (name, measure) in subsets {
        if !args.subsets.iter().any(|subset| subset == name) {
            continue;
        }
        report.subset = name;
        // These two have what they need made once.
        let rounds = if name == "idle" || name == "reconnect" { 1 } else { args.rounds };
        for round in 1..=rounds {
            eprintln_round(name, round, rounds);
            measure(&args, &mut report);
        }
    }
    report.print();
    if let Some(path) = &args.json {
        report.save(path);
    }
}

#[allow(clippy::print_stderr)]
fn eprintln_round(name: &str, round: usize, rounds: usize) {
    eprintln!("{name}: round {round} of {rounds}");
}

struct Args {
    subsets: Vec<String>,
    rounds: usize,
    large_mib: usize,
    json: Option<String>,
    small_assets: usize,
    stock: usize,
    raw_peer: Option<Transport>,
}

impl Args {
    fn parse() -> Self {
        let mut parsed = Self {
            subsets: Vec::new(),
            rounds: 3,
            large_mib: 1024,
            json: None,
            small_assets: 10_000,
            stock: 100_000,
            raw_peer: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} takes a value"));
            match arg.as_str() {
                // What cargo passes to every benchmark.
                "--bench" => {}
                "--rounds" => parsed.rounds = value().parse().unwrap(),
                "--large-mib" => parsed.large_mib = value().parse().unwrap(),
                "--json" => parsed.json = Some(value()),
                "--small" => parsed.small_assets = value().parse().unwrap(),
                "--stock" => parsed.stock = value().parse().unwrap(),
                "--raw-peer" => parsed.raw_peer = Some(Transport::named(&value())),
                "mixed" | "large" | "small" | "live" | "busy" | "fanout" | "reconnect" | "idle" => {
                    parsed.subsets.push(arg);
                }
                _ => panic!("unknown argument {arg:?}; see the head of this file"),
            }
        }
        parsed
    }
}

// --- subsets -------------------------------------------------------------------------------------

/// Half of the assets on each side, put in while apart; then both ways at once.
fn mixed(_: &Args, report: &mut Report) {
    let growth = (MIXED_LARGEST / MIXED_SMALLEST).powf(1.0 / (MIXED_ASSETS - 1) as f64);
    let sizes = (0..MIXED_ASSETS).map(|n| MIXED_SMALLEST * growth.powi(n as i32));
    let scale = MIXED_BYTES / sizes.clone().sum::<f64>();
    let sizes: Vec<_> = sizes.map(|bytes| (bytes * scale) as usize).collect();
    let total_bytes: usize = sizes.iter().sum();
    let folders = [folder(), folder()];
    for (n, bytes) in sizes.iter().enumerate() {
        write_noise(folders[n % 2].path(), n, *bytes);
    }

    let half = total_bytes / 2;
    let raw_s = RawPeer::start(Transport::Iroh).exchange(half, half).as_secs_f64();
    let copy_s = copy_with_fsync(&[folders[0].path(), folders[1].path()]).as_secs_f64();
    let rsync_s = rsync(&[folders[0].path(), folders[1].path()]).map(|time| time.as_secs_f64());
    let devices = [Device::start(), Device::start()];
    let add_s = added(&devices[0], folders[0].path()) + added(&devices[1], folders[1].path());
    let Course { held, connected, in_sync, .. } = joined(&devices, MIXED_ASSETS);
    let rate = total_bytes as f64 / MB / connected;

    report.add("add, both sides", "s", add_s);
    report.add("paired to connected", "s", held - connected);
    report.add("connected to all held", "s", connected);
    report.add("paired to in sync", "s", in_sync);
    report.add("rate, both ways together", "MB/s", rate);
    report.add("rate / original's 63 MB/s", "x", rate / ORIGINAL_MB_S);
    report.add("raw stream", "s", raw_s);
    report.add("rate / raw stream", "x", raw_s / connected);
    report.add("copy with fsync", "s", copy_s);
    report.add("rate / copy with fsync", "x", copy_s / connected);
    if let Some(rsync_s) = rsync_s {
        report.add("rsync, both ways", "s", rsync_s);
        report.add("rate / rsync", "x", rsync_s / connected);
    }
}

/// Large ones, one way.
fn large(args: &Args, report: &mut Report) {
    let bytes = LARGE_ASSETS * (args.large_mib << 20);
    let source = folder();
    for n in 0..LARGE_ASSETS {
        write_noise(source.path(), n, args.large_mib << 20);
    }

    let raw = RawPeer::start(Transport::Iroh);
    let before = raw.usage();
    let raw_s = raw.exchange(bytes, 0).as_secs_f64();
    let raw_cpu_s = (raw.usage() - before).cpu_s;
    let quinn_s = RawPeer::start(Transport::Quinn).exchange(bytes, 0).as_secs_f64();
    let rsync_s = rsync(&[source.path()]).map(|time| time.as_secs_f64());
    let copy_s = copy_with_fsync(&[source.path()]).as_secs_f64();
    let devices = [Device::start(), Device::start()];
    let add_s = added(&devices[0], source.path());
    let before = devices.each_ref().map(|device| device.usage());
    let Course { connected, .. } = joined(&devices, LARGE_ASSETS);
    let [sender, receiver] = devices.each_ref().map(|device| device.usage());
    let sender_cpu_s = (sender - before[0]).cpu_s;
    let receiver_cpu_s = (receiver - before[1]).cpu_s;
    let mib = bytes as f64 / MIB;

    report.add("add", "MiB/s", mib / add_s);
    report.add("connected to durable", "s", connected);
    report.add("rate", "MiB/s", mib / connected);
    report.add("raw stream", "MiB/s", mib / raw_s);
    report.add("rate / raw stream", "x", raw_s / connected);
    report.add("rate / copy with fsync", "x", copy_s / connected);
    report.add("rate / quinn stream", "x", quinn_s / connected);
    if let Some(rsync_s) = rsync_s {
        report.add("rate / rsync", "x", rsync_s / connected);
    }
    report.add("CPU of sender", "s/GiB", sender_cpu_s / mib * 1024.0);
    report.add("CPU of receiver", "s/GiB", receiver_cpu_s / mib * 1024.0);
    report.add("CPU / raw stream's", "x", (sender_cpu_s + receiver_cpu_s) / raw_cpu_s);
    report.add("peak memory of sender", "MiB", sender.peak_bytes / MIB);
    report.add("peak memory of receiver", "MiB", receiver.peak_bytes / MIB);
    report.add("written by receiver / size", "x", receiver.written_bytes / bytes as f64);
}

/// Many small ones, one way.
fn small(args: &Args, report: &mut Report) {
    let source = folder();
    for n in 0..args.small_assets {
        write_noise(source.path(), n, SMALL_BYTES);
    }
    let total_bytes = args.small_assets * SMALL_BYTES;

    let raw_s = RawPeer::start(Transport::Iroh).exchange(total_bytes, 0).as_secs_f64();
    let copy_s = copy_with_fsync(&[source.path()]).as_secs_f64();
    let rsync_s = rsync(&[source.path()]).map(|time| time.as_secs_f64());
    let devices = [Device::start(), Device::start()];
    let add_s = added(&devices[0], source.path());
    let before = devices.each_ref().map(|device| device.usage());
    let Course { connected, .. } = joined(&devices, args.small_assets);
    let [sender, receiver] = devices.each_ref().map(|device| device.usage());
    let assets = args.small_assets as f64;

    report.add("add", "s", add_s);
    report.add("add", "assets/s", assets / add_s);
    report.add("copy with fsync / add", "x", copy_s / add_s);
    report.add("connected to all held", "s", connected);
    report.add("rate", "assets/s", assets / connected);
    report.add("rate / raw stream", "x", raw_s / connected);
    report.add("rate / copy with fsync", "x", copy_s / connected);
    if let Some(rsync_s) = rsync_s {
        report.add("rate / rsync", "x", rsync_s / connected);
    }
    report.add("CPU of sender", "s", (sender - before[0]).cpu_s);
    report.add("CPU of receiver", "s", (receiver - before[1]).cpu_s);
    report.add(
        "written by receiver / size",
        "x",
        (receiver - before[1]).written_bytes / total_bytes as f64,
    );
}

/// From the answer to an upload on one device until the bytes can be read on the other.
fn live(_: &Args, report: &mut Report) {
    let devices = [Device::start(), Device::start()];
    joined(&devices, 0);
    let raw = RawPeer::start(Transport::Iroh);
    let scratch = folder();
    let mut here = devices[0].http();
    let mut there = devices[1].http();
    let mut events = devices[1].events();
    let [mut adds, mut lives, mut raws, mut fsyncs] = [const { Vec::new() }; 4];
    for n in 0..LIVE_ASSETS {
        let (add, live) = push(n, &mut here, &mut there, &mut events);
        adds.push(add);
        lives.push(live);
        std::thread::sleep(Duration::from_millis(LIVE_PAUSES_MS[n % LIVE_PAUSES_MS.len()]));
        raws.push(ms(raw.exchange(SMALL_BYTES, 0)));
        fsyncs.push(ms(fsync_4k(scratch.path())));
    }
    for times in [&mut adds, &mut lives, &mut raws, &mut fsyncs] {
        times.sort_by(f64::total_cmp);
    }
    report.add("add, p50", "ms", p50(&adds));
    report.add("added to readable there, p50", "ms", p50(&lives));
    report.add("added to readable there, p99", "ms", p99(&lives));
    report.add("raw stream of 4 KiB and back, p50", "ms", p50(&raws));
    report.add("fsync of 4 KiB, p50", "ms", p50(&fsyncs));
    report.add("fsync of 4 KiB, p99", "ms", p99(&fsyncs));
    report.add("p50 / (raw + fsync)", "x", p50(&lives) / (p50(&raws) + p50(&fsyncs)));
}

/// The same while large assets cross on the same connection, and just after: what a live push waits
/// for them.
fn busy(args: &Args, report: &mut Report) {
    let source = folder();
    for n in 0..BUSY_ASSETS {
        write_noise(source.path(), n, (args.large_mib << 20) / BUSY_ASSETS);
    }
    let devices = [Device::start(), Device::start()];
    added(&devices[0], source.path());
    let mut here = devices[0].http();
    let mut there = devices[1].http();
    let mut events = devices[1].events();
    pair(&devices[1], &device_ticket(&devices[0]));
    let [mut adds, mut lives, mut quiets] = [const { Vec::new() }; 3];
    let mut pushed = 0;
    while quiets.len() < BUSY_QUIET_ASSETS {
        let (add, live) = push(pushed, &mut here, &mut there, &mut events);
        pushed += 1;
        let held = devices[1].status().store.assets as usize;
        if held < BUSY_ASSETS + pushed {
            adds.push(add);
            lives.push(live);
        } else {
            quiets.push(live);
        }
        std::thread::sleep(Duration::from_millis(LIVE_PAUSES_MS[pushed % LIVE_PAUSES_MS.len()]));
    }
    if lives.is_empty() {
        println!("busy: all has crossed before the first live push: give a larger --large-mib");
        return;
    }
    for times in [&mut adds, &mut lives, &mut quiets] {
        times.sort_by(f64::total_cmp);
    }
    report.add("live pushes during bulk", "", lives.len() as f64);
    report.add("live during bulk, p50", "ms", p50(&lives));
    report.add("live during bulk, p99", "ms", p99(&lives));
    report.add("live after bulk, p50", "ms", p50(&quiets));
    report.add("add during bulk, p50", "ms", p50(&adds));
    report.add("delay by bulk, p50", "ms", p50(&lives) - p50(&quiets));
}

/// Adds a small asset here; milliseconds until that is answered, and from then until it can be read
/// there.
fn push(number: usize, here: &mut Http, there: &mut Http, events: &mut Events) -> (f64, f64) {
    let content = noise(1_000_000 + number, SMALL_BYTES);
    let hash = HashAlgorithm::Blake3.hash(&content).to_string();
    let start = Instant::now();
    let (status, _) = here.request("POST", "/assets", &content);
    assert_eq!(status, 201);
    let added = Instant::now();
    events.wait_for(&hash);
    let (status, read) = there.request("GET", &format!("/assets/{hash}"), b"");
    let live = ms(added.elapsed());
    assert!(status == 200 && read == content);
    (ms(added - start), live)
}

fn p50(times: &[f64]) -> f64 {
    times[times.len() / 2]
}

fn p99(times: &[f64]) -> f64 {
    times[times.len() * 99 / 100]
}

/// From one device to five others, which pass on what they have.
fn fan_out(_: &Args, report: &mut Report) {
    let source = folder();
    for n in 0..FAN_OUT_ASSETS {
        write_noise(source.path(), n, FAN_OUT_BYTES);
    }
    let total_bytes = FAN_OUT_ASSETS * FAN_OUT_BYTES;
    let raw_s = RawPeer::start(Transport::Iroh).exchange(total_bytes, 0).as_secs_f64();
    let first = Device::start();
    let others: Vec<_> = (0..FAN_OUT).map(|_| Device::start()).collect();
    for other in &others {
        pair(other, &device_ticket(&first));
    }
    for device in others.iter().chain([&first]) {
        wait_until_held(device, 0);
    }
    let start = Instant::now();
    added(&first, source.path());
    for other in &others {
        wait_until_held(other, FAN_OUT_ASSETS as u64);
    }
    let all_s = start.elapsed().as_secs_f64();
    let sent_bytes: u64 = first.status().peers.iter().map(|peer| peer.sent_bytes).sum();
    report.add("added to held by all five", "s", all_s);
    report.add("five raw streams, one by one / it", "x", FAN_OUT as f64 * raw_s / all_s);
    report.add("sent by the first / size", "x", sent_bytes as f64 / total_bytes as f64);
}

/// Two devices in homes of their own that know each other and hold the same `--stock` assets.
fn stocked(args: &Args) -> [TempDir; 2] {
    let devices = [Device::start(), Device::start()];
    joined(&devices, 0);
    let folders = devices.map(Device::stop);
    for folder in &folders {
        put_directly(folder.path(), 0..args.stock, STOCK_BYTES);
    }
    let (devices, _) = start_both(folders, args.stock as u64);
    // Their journals have a word on every asset.
    let written = || devices.each_ref().map(|device| device.usage().written_bytes);
    let mut before = written();
    loop {
        std::thread::sleep(SETTLE);
        let now = written();
        if (0..2).all(|n| now[n] - before[n] < IDLE_BYTES) {
            return devices.map(Device::stop);
        }
        before = now;
    }
}

fn wire_bytes(devices: &[Device; 2]) -> u64 {
    let peer = devices[0].status().peers.remove(0);
    peer.wire_sent_bytes + peer.wire_received_bytes
}

/// Into the store of a device that does not run.
fn put_directly(folder: &Path, numbers: std::ops::Range<usize>, bytes: usize) {
    let store = EmbeddedStore::open(&folder.join("home/store"), Options::default()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut left = numbers;
    while !left.is_empty() {
        let now = left.start..left.end.min(left.start + PUT_ASSETS);
        left.start = now.end;
        let assets = now.map(|number| {
            let content: bytes::Bytes = noise(number, bytes).into();
            let hash = HashAlgorithm::Blake3.hash(&content);
            let digest = Digest { hash, size_bytes: bytes as u64 };
            NewAsset { digest, content, metadata: Metadata::default() }
        });
        for stored in runtime.block_on(store.put(assets.collect())).unwrap() {
            stored.unwrap();
        }
    }
    runtime.block_on(store.close());
}

/// Two devices that were in step start again: with nothing changed, and with a few new assets each.
fn reconnect(args: &Args, report: &mut Report) {
    let mut folders = stocked(args);
    let mut assets = args.stock;
    let mut next = 10_000_000;
    for _ in 0..args.rounds {
        for needles in [0, NEEDLES] {
            for folder in &folders {
                put_directly(folder.path(), next..next + needles, SMALL_BYTES);
                next += needles;
            }
            assets += 2 * needles;
            let (devices, course) = start_both(folders, assets as u64);
            // What follows the agreement costs too.
            std::thread::sleep(AFTERMATH);
            let rest_bytes = wire_bytes(&devices) as f64 - (2 * needles * SMALL_BYTES) as f64;
            let [start, session, wire] = match needles {
                0 => ["unchanged: start to in sync", "unchanged: from session", "unchanged: wire"],
                _ => ["10 new: start to in sync", "10 new: from session", "10 new: wire - content"],
            };
            report.add(start, "s", course.in_sync);
            report.add(session, "ms", course.connected_in_sync * 1000.0);
            report.add(wire, "B", rest_bytes);
            for device in &devices {
                report.add("peak memory", "MiB", device.usage().peak_bytes / MIB);
            }
            folders = devices.map(Device::stop);
        }
    }
}

/// Two connected devices with nothing to do.
fn idle(args: &Args, report: &mut Report) {
    let (devices, _) = start_both(stocked(args), args.stock as u64);
    std::thread::sleep(SETTLE);
    let before = devices.each_ref().map(|device| device.usage());
    std::thread::sleep(IDLE);
    for (device, before) in devices.iter().zip(before) {
        let used = device.usage() - before;
        let seconds = IDLE.as_secs_f64();
        report.add("CPU, each agent", "ms/s", used.cpu_s * 1000.0 / seconds);
        report.add("wake-ups, each agent", "1/s", used.wakeups / seconds);
        report.add("writes, each agent", "B/s", used.written_bytes / seconds);
        report.add("memory, each agent", "MiB", used.resident_bytes / MIB);
        report.add("peak memory, each agent", "MiB", used.peak_bytes / MIB);
    }
}

/// Seconds that adding a folder takes.
fn added(device: &Device, folder: &Path) -> f64 {
    let start = Instant::now();
    device.run(&["--quiet", "add", folder.to_str().unwrap()], "");
    start.elapsed().as_secs_f64()
}

/// Pairs two devices, of which both then hold `assets`.
fn joined(devices: &[Device; 2], assets: usize) -> Course {
    let ticket = device_ticket(&devices[0]);
    wait_for_both(devices, assets as u64, || pair(&devices[1], &ticket))
}

fn device_ticket(device: &Device) -> String {
    device.run(&["ticket"], "")
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

// --- contents ------------------------------------------------------------------------------------

/// A folder on the disk that the build is on; `/tmp` is often none.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Bytes that do not compress, the same for the same number.
fn noise(number: usize, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    noise_reader(number).fill(&mut content);
    content
}

fn noise_reader(number: usize) -> blake3::OutputReader {
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof()
}

fn write_noise(folder: &Path, number: usize, bytes: usize) {
    let mut file = fs::File::create(folder.join(format!("{number:05}"))).unwrap();
    let mut noise = noise_reader(number);
    let mut buffer = vec![0; bytes.min(1 << 20)];
    let mut left = bytes;
    while left > 0 {
        let piece = &mut buffer[..left.min(1 << 20)];
        noise.fill(piece);
        file.write_all(piece).unwrap();
        left -= piece.len();
    }
}

// --- report --------------------------------------------------------------------------------------

#[derive(Default)]
struct Report {
    subset: &'static str,
    figures: Vec<Figure>,
}

struct Figure {
    subset: &'static str,
    name: &'static str,
    unit: &'static str,
    /// One for each round.
    samples: Vec<f64>,
}

impl Report {
    fn add(&mut self, name: &'static str, unit: &'static str, value: f64) {
        let subset = self.subset;
        let known =
            self.figures.iter_mut().find(|f| (f.subset, f.name, f.unit) == (subset, name, unit));
        match known {
            Some(figure) => figure.samples.push(value),
            None => self.figures.push(Figure { subset, name, unit, samples: vec![value] }),
        }
    }

    fn print(&self) {
        println!(
            "\n{:<6} {:<34} {:<8} {:>11} {:>11} {:>11}",
            "subset", "figure", "unit", "median", "least", "most"
        );
        for figure in &self.figures {
            let Figure { subset, name, unit, .. } = figure;
            let [least, median, most] = figure.spread().map(shown);
            println!("{subset:<6} {name:<34} {unit:<8} {median:>11} {least:>11} {most:>11}");
        }
    }

    fn save(&self, path: &str) {
        let figures: Vec<_> = self
            .figures
            .iter()
            .map(|figure| {
                let [least, median, most] = figure.spread();
                let Figure { subset, name, unit, samples } = figure;
                json!({
                    "subset": subset,
                    "figure": name,
                    "unit": unit,
                    "median": median,
                    "least": least,
                    "most": most,
                    "samples": samples,
                })
            })
            .collect();
        fs::write(path, serde_json::to_string_pretty(&figures).unwrap()).unwrap();
        println!("\nwritten to {path}");
    }
}

impl Figure {
    /// Least, median, most.
    fn spread(&self) -> [f64; 3] {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
    }
}

fn shown(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        small if small < 10.0 => format!("{value:.3}"),
        middle if middle < 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
