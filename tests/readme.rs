//! Checks that the README's statements about the code are true: tables, commands, files it refers
//! to.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use can_sync::cli::Cli;
use can_sync::core::close::CloseCode;
use clap::CommandFactory as _;

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the first table below a heading without its header, each as its trimmed cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let readme = file("README.md");
    let at = readme.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let rows = readme[at..].lines().skip_while(|line| !line.starts_with('|'));
    rows.take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

#[test]
fn the_close_codes_are_those_of_the_code() {
    let said: Vec<_> = table("### Close codes").iter().map(|row| row[..3].join("|")).collect();
    let are: Vec<_> = CloseCode::all()
        .map(|code| format!("{}|{code}|{}", code.number(), code.sentence()))
        .collect();
    assert_eq!(said, are);
}

#[test]
fn the_exit_statuses_are_those_of_the_code() {
    let mut are = Vec::new();
    let mut sentence = String::new();
    for line in file("src/cli/exit.rs").lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("/// ") {
            sentence = doc.split_inclusive(". ").next().unwrap_or(doc).trim().to_owned();
        } else if let Some((_, number)) = line.strip_suffix(',').and_then(|l| l.split_once(" = ")) {
            are.push(vec![number.to_owned(), sentence.clone()]);
        }
    }
    assert!(are.len() > 5, "{are:?}");
    assert_eq!(table("### Exit statuses"), are);
    let help = Cli::command().render_long_help().to_string();
    let help = help.split_once("Exit status:").expect("the help tells the exit statuses").1;
    for row in &are {
        assert!(help.contains(&format!(" {} ", row[0])), "{row:?} is not in the help");
    }
}

#[test]
fn every_command_is_in_the_table_and_no_other() {
    let said: BTreeSet<_> =
        table("## Commands").iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    let are: BTreeSet<_> = Cli::command()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| command.get_name().to_owned())
        .collect();
    assert_eq!(said, are);
}

#[test]
fn the_test_command_is_the_one_every_change_has_to_pass() {
    let readme = file("README.md");
    let commands: Vec<_> =
        readme.lines().filter_map(|line| line.strip_prefix("$ cargo test")).collect();
    assert_eq!(commands, [" --locked"]);
    assert!(file(".ci/run").lines().any(|line| line == "cargo test --locked"));
}

#[test]
fn every_benchmark_and_file_it_names_is_there() {
    let (readme, manifest) = (file("README.md"), file("Cargo.toml"));
    for rest in readme.split("cargo bench --bench ").skip(1) {
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        assert!(manifest.contains(&format!("name = \"{name}\"")), "no benchmark {name}");
    }
    for path in ["proto/store.proto", "src/lib.rs", "CHANGELOG.md", ".ci/run"] {
        assert!(readme.contains(path) && !file(path).is_empty(), "{path}");
    }
}
