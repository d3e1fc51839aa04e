//! The rules of this code base, checked on the text of `src/`: rules that the compiler cannot
//! enforce because everything is one crate. Comments, strings and test modules are ignored.

use std::fs;
use std::path::Path;

#[path = "tidy/circles.rs"]
mod circles;

/// The folders that each folder may import: only those below it. `main.rs` and `lib.rs` are above
/// all.
const ARROWS: [(&str, &[&str]); 22] = [
    ("core", &[]),
    ("clock", &[]),
    ("db", &[]),
    ("bao", &["core"]),
    ("wire", &["core"]),
    ("store", &["core", "wire", "clock", "db", "bao"]),
    ("net", &["core", "wire", "clock"]),
    ("state", &["core", "wire", "clock", "db", "bao"]),
    ("http", &["core", "wire", "clock", "store"]),
    ("config", &["core", "net", "state"]),
    ("replica", &["core", "wire", "clock", "store", "net", "state"]),
    ("group", &["core", "wire", "clock", "net", "state", "replica"]),
    ("transfer", &["core", "wire", "clock", "store", "net", "state", "replica", "bao"]),
    ("thumbnails", &["core", "wire", "store", "net", "transfer"]),
    ("folders", &["core", "wire", "clock", "db", "store", "state", "replica"]),
    ("alerts", &["core", "clock", "store", "state", "replica", "folders"]),
    (
        "copies",
        &["core", "clock", "store", "net", "state", "replica", "transfer", "folders", "group"],
    ),
    (
        "agent",
        &[
            "core",
            "wire",
            "clock",
            "store",
            "net",
            "state",
            "replica",
            "transfer",
            "folders",
            "group",
            "copies",
            "alerts",
            "thumbnails",
        ],
    ),
    (
        "api",
        &[
            "core", "wire", "clock", "store", "net", "state", "config", "replica", "transfer",
            "folders", "group", "copies", "alerts", "http", "agent",
        ],
    ),
    (
        "page",
        &[
            "core",
            "clock",
            "state",
            "replica",
            "folders",
            "group",
            "http",
            "agent",
            "api",
            "dav",
            "copies",
            "thumbnails",
        ],
    ),
    ("dav", &["core", "clock", "store", "state", "replica", "http", "agent"]),
    (
        "cli",
        &[
            "core",
            "wire",
            "clock",
            "store",
            "net",
            "state",
            "config",
            "replica",
            "transfer",
            "folders",
            "group",
            "copies",
            "alerts",
            "thumbnails",
            "http",
            "agent",
            "api",
            "page",
            "dav",
        ],
    ),
];

/// The only files that may start tasks and threads, each with the code that waits for their end.
const OWNERS: [(&str, &str); 9] = [
    ("agent/mod.rs", "the agent's loop, awaited by `Agent::ended`"),
    ("agent/tasks.rs", "the `JoinSet` of all the agent's tasks, emptied at stop"),
    ("alerts/program.rs", "the program of a hook, ended and reaped before the call returns"),
    ("transfer/intake.rs", "a batch's `JoinSet` of commits"),
    ("net/accept.rs", "the acceptor's `JoinSet` of handshakes"),
    ("http/serve.rs", "the server's `JoinSet` of connections"),
    ("cli/logging.rs", "the thread that writes the log, flushed at the end of `run`"),
    ("db/writer.rs", "the writer thread, joined by `close`"),
    ("thumbnails/mod.rs", "a child process, waited for, and killed when its request is dropped"),
];

/// A rule: its name, the words that break it, the files that it covers, and its reason.
struct Rule {
    name: &'static str,
    words: &'static [&'static str],
    applies: fn(&str, &str) -> bool,
    reason: &'static str,
}

const RULES: [Rule; 8] = [
    Rule {
        name: "the core is pure",
        words: &[
            "async",
            "await",
            "tokio",
            "reqwest",
            "rusqlite",
            "iroh",
            "std::fs",
            "std::io",
            "std::net::Tcp",
            "std::net::Udp",
            "std::env",
            "Instant",
            "SystemTime",
            "spawn",
            "thread",
            "Mutex",
            "RwLock",
            "Atomic",
            "HashMap",
            "HashSet",
            "RandomState",
            "rand",
            "static mut",
        ],
        applies: |path, _| path.starts_with("core/") || path.starts_with("wire/"),
        reason: "a run of it must depend on its inputs alone, so that a simulation can repeat it",
    },
    Rule {
        name: "one reader of the wall clock",
        words: &["SystemTime::now"],
        applies: |path, _| path != "clock.rs",
        reason: "`clock.rs` reads it; everybody else is told the time",
    },
    Rule {
        name: "one reader of the monotonic clock",
        words: &["Instant::now", ".elapsed()"],
        // Deadlines of tokio's timers are on tokio's own clock, which tests can pause.
        applies: |path, code| path != "clock.rs" && !names_tokio_instant(code),
        reason: "`clock.rs` reads it; everybody else is told the time",
    },
    Rule {
        name: "queues are bounded",
        words: &["unbounded", "unbounded_channel", "mpsc::channel()", "UnboundedSender"],
        applies: |_, _| true,
        reason: "a slow reader must slow its writer, not fill the memory",
    },
    Rule {
        name: "tasks are owned",
        words: &["spawn", "spawn_local", "spawn_scoped"],
        applies: |path, _| OWNERS.iter().all(|(owner, _)| *owner != path),
        reason: "a task nobody waits for is lost at stop, and its panic unseen",
    },
    Rule {
        name: "the QUIC library stays in net/",
        words: &["iroh", "noq", "iroh_mdns_address_lookup", "iroh_base", "iroh_relay"],
        applies: |path, _| !path.starts_with("net/") && path != "state/identity.rs",
        reason: "another one must be a change of one folder; the identity is its kind of key",
    },
    Rule {
        name: "one reader of the store's feed",
        words: &[".touched("],
        applies: |path, _| !path.starts_with("store/") && path != "replica/catalogue/mod.rs",
        reason: "a second reader is a second connection, cursor and backoff; see the catalogue",
    },
    Rule {
        name: "one place prints",
        words: &["println!", "print!", "eprintln!", "eprint!", "dbg!"],
        applies: |path, _| path != "cli/output.rs",
        reason: "data goes to standard output and prose to standard error, and neither may panic",
    },
];

#[test]
fn the_sources_keep_the_rules_of_the_house() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = Vec::new();
    let mut seen = 0;
    for (path, text) in sources(&root) {
        seen += 1;
        broken.extend(check(&path, &text));
    }
    assert!(seen > 50, "only {seen} files found below {}", root.display());
    for (owner, _) in OWNERS {
        let text = fs::read_to_string(root.join(owner)).expect("every owner is there");
        assert!(code_of(&text).contains("spawn("), "{owner} spawns nothing and is no owner");
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn no_more_than_three_files_are_tied_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources: Vec<_> =
        sources(&root).into_iter().map(|(path, text)| (path, code_of(&text))).collect();
    assert_eq!(circles::large_circles(&sources), Vec::<String>::new());
}

#[test]
fn a_bad_file_breaks_the_rule_that_is_for_it() {
    let broken_by = |path: &str, code: &str| {
        let broken = check(path, &format!("//! Head.\n{code}\n"));
        broken
            .iter()
            .map(|line| line.split(':').next().unwrap_or("").to_owned())
            .collect::<Vec<_>>()
    };
    for (path, code, rule) in [
        ("core/a.rs", "async fn f() {}", "the core is pure"),
        ("wire/a.rs", "use std::collections::{BTreeMap, HashMap};", "the core is pure"),
        ("core/a.rs", "fn f(now: std::time::Instant) {}", "the core is pure"),
        ("agent/a.rs", "let t = SystemTime::now();", "one reader of the wall clock"),
        ("agent/a.rs", "let t = Instant::now();", "one reader of the monotonic clock"),
        ("agent/a.rs", "let t = tokio::sync::mpsc::unbounded_channel();", "queues are bounded"),
        ("cli/a.rs", "tokio::spawn(async {});", "tasks are owned"),
        ("net/a.rs", "std::thread::spawn(|| 1);", "tasks are owned"),
        ("agent/a.rs", "use iroh::Endpoint;", "the QUIC library stays in net/"),
        ("agent/a.rs", "let feed = store.touched(0);", "one reader of the store's feed"),
        ("agent/a.rs", "println!(\"x\");", "one place prints"),
        ("wire/a.rs", "use crate::store::Store;", "imports point down"),
        ("net/a.rs", "use crate::state::group::Group;", "imports point down"),
        ("store/a.rs", "use crate::{core::ids, net};", "imports point down"),
        ("store/http/a.rs", "use super::super::super::net;", "imports point down"),
        ("api/a.rs", "use crate::cli;", "imports point down"),
    ] {
        assert_eq!(broken_by(path, code), [rule], "{path}: {code}");
    }
    assert_eq!(check("core/a.rs", "fn f() {}\n").len(), 1, "a file without a head");
    let nowhere = check("utils/a.rs", "//! Head.\nuse crate::core;\n");
    assert!(nowhere[0].starts_with("imports point down: src/utils/a.rs:2: "), "{nowhere:?}");
}

#[test]
fn a_panic_unwinds_in_every_build() {
    // `net/contain.rs` catches panics of the QUIC library, which `panic = "abort"` would make
    // impossible.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["Cargo.toml", ".cargo/config.toml"] {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        assert!(!text.lines().any(|line| line.trim_start().starts_with("panic")), "{file}");
    }
}

#[test]
fn comments_strings_and_tests_are_not_code() {
    let fine = r##"//! Speaks of tokio and HashMap.
/* async /* nested */ spawn */
const A: &str = "tokio::spawn \" HashMap";
const B: &str = r#"println! " "#;
const C: (char, char) = ('"', '\'');
fn grand<'a>(operand: &'a str) -> &'a str { operand } // rand
#[cfg(test)]
use std::collections::HashMap;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;
    fn f() { std::thread::spawn(|| { "}" }); }
}
"##;
    assert_eq!(check("core/a.rs", fine), Vec::<String>::new());
    let after = format!("{fine}use tokio::sync;\n");
    assert_eq!(check("core/a.rs", &after).len(), 1, "what follows a test module counts");
    assert!(check("core/a.rs", &after)[0].contains("src/core/a.rs:15: `tokio`"));
    let tokio_clock = "//! Head.\nuse tokio::time::{Instant, sleep};\nfn f() { Instant::now(); }\n";
    assert_eq!(check("agent/a.rs", tokio_clock), Vec::<String>::new());
}

/// The violations in one file, a line each: rule, place, what was found, reason.
fn check(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let mut say = |rule: &str, line: usize, found: &str, reason: &str| {
        broken.push(format!("{rule}: src/{path}:{line}: {found}: {reason}"));
    };
    if !text.starts_with("//! ") {
        let reason = "whoever opens a file is told first what it decides";
        say("a file begins with its story", 1, "no `//!` head", reason);
    }
    let code = code_of(text);
    // A task given to the agent's `Tasks` has its owner.
    let code = code.replace("tasks.spawn", "tasks.start");
    for rule in RULES {
        if !(rule.applies)(path, &code) {
            continue;
        }
        for (index, line) in code.lines().enumerate() {
            if let Some(word) = rule.words.iter().find(|word| has_word(line, word)) {
                say(rule.name, index + 1, &format!("`{word}`"), rule.reason);
            }
        }
    }
    let folder = path.split(['/', '.']).next().unwrap_or(path);
    if matches!(folder, "main" | "lib") {
        return broken;
    }
    let below = ARROWS.iter().find(|(name, _)| *name == folder).map_or(&[][..], |(_, all)| *all);
    let depth = path.trim_end_matches("/mod.rs").split('/').count();
    for (index, line) in code.lines().enumerate() {
        let supers = "super::".repeat(depth);
        let from_root = line.match_indices("crate::").map(|(at, found)| &line[at + found.len()..]);
        let from_super = line
            .match_indices(&supers)
            .map(|(at, found)| line[at + found.len()..].trim_start_matches("super::"));
        for target in from_root.chain(from_super) {
            let name: String = target.chars().take_while(|c| is_name(*c)).collect();
            if name != folder && !below.contains(&name.as_str()) {
                let reason = "see the arrows at the head of `tests/tidy.rs`";
                let found = format!("`{}` in {folder}", target.trim_end_matches(';'));
                say("imports point down", index + 1, &found, reason);
            }
        }
    }
    broken
}

/// Whether `Instant` in this file is tokio's.
fn names_tokio_instant(code: &str) -> bool {
    code.lines().any(|line| line.starts_with("use tokio::time::") && has_word(line, "Instant"))
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` occurs in `line` and is not part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let joins = |outside: Option<char>, inside: Option<char>| {
            outside.is_some_and(is_name) && inside.is_some_and(is_name)
        };
        // `Atomic`, `std::net::Tcp` and `std::net::Udp` are prefixes of families of names.
        let family = word.ends_with("Tcp") || word.ends_with("Udp") || word == "Atomic";
        !joins(line[..at].chars().next_back(), word.chars().next())
            && (family || !joins(line[at + word.len()..].chars().next(), word.chars().next_back()))
    })
}

/// `text` with everything blanked that is not code of the product; line numbers stay the same.
fn code_of(text: &str) -> String {
    without_tests(&without_comments_and_strings(text))
}

fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let opaque = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => 1 + string_end(&rest[1..]),
            'r' if !code.ends_with(is_name) || code.ends_with('b') => raw_string(rest),
            '\'' => char_literal(rest),
            _ => 0,
        };
        let taken = if opaque == 0 { c.len_utf8() } else { opaque };
        if opaque == 0 {
            code.push(c);
        } else {
            code.extend(rest[..opaque].chars().filter(|c| *c == '\n'));
            code.push(' ');
        }
        rest = &rest[taken..];
    }
    code
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let step = match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (1, 2),
            [b'*', b'/', ..] => (-1, 2),
            _ => (0, 1),
        };
        depth += step.0;
        at += step.1;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The end of a string whose opening quote was consumed.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the raw string at the start of `text`; 0 when there is none.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    text[body..].find(&close).map_or(text.len(), |at| body + at + close.len())
}

/// The length of the character literal at the start of `text`; 0 for a lifetime.
fn char_literal(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escaped, _))) => {
            text[escaped + 1..].find('\'').map_or(0, |at| escaped + 1 + at + 1)
        }
        (Some(_), Some((end, '\''))) => end + 1,
        _ => 0,
    }
}

/// Blanks every item under `#[cfg(test)]`, up to its closing brace or semicolon.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        kept.push_str(&rest[..at]);
        let item = &rest[at..];
        let mut depth = 0_usize;
        let mut end = item.len();
        for (at, c) in item.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && matches!(c, '}' | ';') {
                end = at + 1;
                break;
            }
        }
        kept.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    kept + rest
}

/// The product's files below `root` with their relative paths, without files of test modules.
fn sources(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the sources can be read") {
            let path = entry.expect("an entry of the sources can be read").path();
            let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
            if path.is_dir() && !is_test {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
                let text = fs::read_to_string(&path).expect("a source is text");
                let short = path.strip_prefix(root).expect("it lies below the root");
                found.push((short.to_string_lossy().into_owned(), text));
            }
        }
    }
    found.sort();
    found
}
