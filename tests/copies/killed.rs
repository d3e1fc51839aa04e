//! A device killed with SIGKILL while what it wants is changed: the change was made or it was not, no
//! content that was here is gone, and in the end exactly what is wanted has come.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::agent::{Agent, program, until_within};
use super::content;

/// Kills in a run; `ROUNDS` asks for more.
const ROUNDS: u64 = 6;

/// Everything has come within this.
const SETTLED: Duration = Duration::from_secs(120);

/// The expressions that the device changes between, as they are printed.
const EXPRESSIONS: [&str; 4] =
    ["name=*.raw", "name=*.txt and size>2K", "name=*.txt or name=*.jpg", "size>3K"];

/// The names of the assets that an agent holds.
fn names(agent: &Agent) -> BTreeSet<String> {
    let rows = agent.json(&["ls"]);
    // The name may come after the bytes.
    let names = rows.iter().map(|row| row["name"].as_str().unwrap());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn a_device_killed_while_it_changes_what_it_wants_loses_nothing_and_ends_with_what_it_wants() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("SEED").unwrap_or_else(|| rand::rng().random());
    let rounds = number("ROUNDS").unwrap_or(ROUNDS);
    println!("SEED={seed} ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);
    let scratch = tempfile::tempdir().unwrap();
    let files = scratch.path().join("files");
    fs::create_dir(&files).unwrap();
    for n in 0..90_usize {
        let ending = ["raw", "txt", "jpg"][n % 3];
        let bytes = content(seed ^ n as u64, 1_000 + n * 40);
        fs::write(files.join(format!("{n}.{ending}")), bytes).unwrap();
    }
    let desk = Agent::start_in(&scratch.path().join("desk"));
    let home = scratch.path().join("phone");
    let mut phone = Agent::start_in(&home);
    desk.output(&["add", files.to_str().unwrap()]);
    phone.output(&["want", "name=*.none"]);
    let ticket = desk.output(&["--quiet", "ticket"]).trim().to_owned();
    phone.command(&["pair"]).write_stdin(format!("{ticket}\n")).assert().success();

    let mut held = names(&phone);
    let mut wanted = "name=*.none".to_owned();
    for round in 0..rounds {
        let next = EXPRESSIONS[random.random_range(0..EXPRESSIONS.len())];
        println!("round {round}: {wanted} -> {next}");
        let mut command = program();
        command.arg("--home").arg(&home).args(["want", next]);
        let mut setting = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Any moment of the change and of what follows.
        std::thread::sleep(Duration::from_millis(random.random_range(0..700)));
        let pid = phone.pid().to_string();
        assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
        phone.ended();
        let was_answered = setting.wait().unwrap().success();
        phone = Agent::start_in(&home);
        let now = phone.output(&["want"]).trim().to_owned();
        assert!(now == next || now == wanted && !was_answered, "{wanted} -> {next}: {now}");
        wanted = now;
        let holds = names(&phone);
        assert!(holds.is_superset(&held), "it lost {:?}", held.difference(&holds));
        held = holds;
    }
    phone.output(&["want", "name=*.jpg"]);
    until_within(SETTLED, "the pictures are here", || {
        let names = names(&phone);
        (0..90).filter(|n| n % 3 == 2).all(|n| names.contains(&format!("{n}.jpg")))
    });
    phone.output(&["wait", "--timeout", "25s"]);
    let holds = names(&phone);
    assert!(holds.is_superset(&held));
    // The desk knows of each asset whether the phone has it.
    until_within(SETTLED, "the desk knows", || {
        desk.json(&["ls"]).iter().all(|row| {
            let view = &desk.json(&["info", row["hash"].as_str().unwrap()])[0];
            let is_there = holds.contains(row["name"].as_str().unwrap());
            view["copies"]["holders"].as_array().unwrap().len() == usize::from(is_there)
        })
    });
    for agent in [&desk, &phone] {
        let log = agent.log();
        let errors: Vec<_> = log.lines().filter(|line| line.contains(" ERROR ")).collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}
