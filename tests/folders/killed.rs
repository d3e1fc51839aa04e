//! Agents killed with SIGKILL at any moment, while both directories are edited, before the kill and
//! until the next start: nothing that was written is lost, nothing that was removed or renamed comes
//! back, and both directories end equal.

use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::agent::{Agent, until_within};
use super::*;

/// Kills in a run; `ROUNDS` asks for more.
const ROUNDS: u32 = 10;

/// Both directories end equal within this.
const SETTLED: Duration = Duration::from_secs(120);

struct Device {
    agent: Agent,
    home: PathBuf,
    dir: PathBuf,
}

impl Device {
    fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        list(&self.dir, &self.dir, &mut tree);
        tree
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn is_up_to_date(&self) -> bool {
        let status = self.agent.json(&["folder", "status", NAME]);
        let binding = &status[0]["folder"]["binding"];
        if binding["state"] == "held" {
            self.agent.output(&["folder", "confirm", NAME]);
        }
        binding["state"] == "up_to_date"
    }

    fn kill(&mut self) {
        let pid = self.agent.pid().to_string();
        assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
        self.agent.ended();
    }

    fn start(&mut self) {
        self.agent = Agent::start_in(&self.home);
    }
}

/// What a device wrote: each path is written by one device alone, so the last content must be there.
struct Written {
    files: BTreeMap<String, Vec<u8>>,
    serial: u64,
}

impl Written {
    /// Writes, overwrites, renames and removes some files.
    fn edit(&mut self, device: &Device, prefix: &str, random: &mut StdRng) {
        for _ in 0..random.random_range(1..30) {
            self.serial += 1;
            let known: Vec<String> = self.files.keys().cloned().collect();
            let pick = |random: &mut StdRng| known[random.random_range(0..known.len())].clone();
            match random.random_range(0..10) {
                0 if !known.is_empty() => {
                    let path = pick(random);
                    fs::remove_file(device.dir.join(&path)).unwrap();
                    self.files.remove(&path);
                }
                1 | 2 if !known.is_empty() => {
                    let (from, to) = (pick(random), format!("{prefix}/renamed/{}", self.serial));
                    fs::create_dir_all(device.dir.join(&to).parent().unwrap()).unwrap();
                    fs::rename(device.dir.join(&from), device.dir.join(&to)).unwrap();
                    let content = self.files.remove(&from).unwrap();
                    self.files.insert(to, content);
                }
                kind => {
                    let path = match kind {
                        3 | 4 if !known.is_empty() => pick(random),
                        _ => format!("{prefix}/{}/{}", self.serial % 5, self.serial),
                    };
                    let bytes = if random.random_range(0..12) == 0 { 400_000 } else { 900 };
                    let content = content(random.random(), bytes).to_vec();
                    device.write(&path, &content);
                    self.files.insert(path, content);
                }
            }
        }
    }
}

#[test]
fn agents_killed_at_any_moment_lose_no_edit_bring_nothing_back_and_end_equal() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("SEED").unwrap_or_else(|| rand::rng().random());
    let rounds = number("ROUNDS").unwrap_or(u64::from(ROUNDS));
    println!("SEED={seed} ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);
    let scratch = tempfile::tempdir().unwrap();
    let mut devices: Vec<Device> = ["a", "b"]
        .into_iter()
        .map(|name| {
            let home = scratch.path().join(format!("home-{name}"));
            let dir = scratch.path().canonicalize().unwrap().join(format!("dir-{name}"));
            fs::create_dir(&dir).unwrap();
            Device { agent: Agent::start_in(&home), home, dir }
        })
        .collect();
    let ticket = devices[0].agent.output(&["--quiet", "ticket"]).trim().to_owned();
    devices[1].agent.command(&["pair"]).write_stdin(format!("{ticket}\n")).assert().success();
    let dirs: Vec<String> =
        devices.iter().map(|device| device.dir.to_str().unwrap().to_owned()).collect();
    devices[0].agent.output(&["folder", "add", &dirs[0], "--name", NAME]);
    agent::until("the folder is known", || {
        devices[1].agent.output(&["folder", "ls"]).contains(NAME)
    });
    devices[1].agent.output(&["folder", "join", NAME, &dirs[1]]);

    let mut written = ["of-a", "of-b"].map(|_| Written { files: BTreeMap::new(), serial: 0 });
    for round in 0..rounds {
        for (at, prefix) in ["of-a", "of-b"].into_iter().enumerate() {
            written[at].edit(&devices[at], prefix, &mut random);
        }
        // Any moment of the work that follows.
        std::thread::sleep(Duration::from_millis(random.random_range(0..1_500)));
        let victim = random.random_range(0..2);
        println!("round {round}: kill {victim}");
        devices[victim].kill();
        for (at, prefix) in ["of-a", "of-b"].into_iter().enumerate() {
            if random.random_range(0..2) == 0 {
                written[at].edit(&devices[at], prefix, &mut random);
            }
        }
        devices[victim].start();
    }
    until_within(SETTLED, "both are equal", || {
        devices.iter().all(Device::is_up_to_date) && devices[0].tree() == devices[1].tree()
    });
    let mut expected: BTreeMap<&String, &Vec<u8>> = BTreeMap::new();
    written.iter().for_each(|written| expected.extend(&written.files));
    for (path, content) in &expected {
        let there = fs::read(devices[0].dir.join(path)).unwrap_or_default();
        assert!(&&there == content, "{path} has {} bytes, seed {seed}", there.len());
    }
    let mut found = devices[0].tree();
    found.retain(|path, _| !expected.contains_key(path));
    assert!(found.is_empty(), "nobody made {:?}, seed {seed}", found.keys());
    for device in &devices {
        let log = device.agent.log();
        let errors: Vec<_> = log.lines().filter(|line| line.contains(" ERROR ")).collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}
