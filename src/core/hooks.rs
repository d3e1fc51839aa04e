//! What a hook is: which events it is for, and what is called with them. Also how a call that fails
//! is repeated, and how a request to a URL is signed with its key left out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::journal::device_events::EVENT_TYPES;

/// The most hooks: each waits for events, and runs one program at a time.
pub const HOOKS_MAX: usize = 16;

/// The longest name of a hook; it is typed.
const NAME_CHARS_MAX: usize = 32;

/// The most words of a program's command line, and the longest.
const WORDS_MAX: usize = 64;
const WORD_BYTES_MAX: usize = 4096;

/// The longest URL.
const URL_BYTES_MAX: usize = 2048;

/// The hosts to which `http` may go: nobody listens in between.
const LOOPBACK_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// An event that could not be delivered for so long is given up, so that those after it are heard.
pub const GIVE_UP_MS: u64 = 3 * 24 * 60 * 60 * 1000;

/// The pause before the first repetition; it doubles each time.
const BACKOFF_MS_MIN: u64 = 1_000;

/// The longest pause.
const BACKOFF_MS_MAX: u64 = 10 * 60 * 1000;

/// A hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The hook's name.
    pub name: String,
    /// The types of the events that it is for.
    pub on: Vec<String>,
    /// What is called.
    pub target: Target,
}

/// What a hook calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HookTarget)]
pub enum Target {
    /// A program with its arguments; no shell.
    Exec(Vec<String>),
    /// A URL to which the event is posted.
    Url(String),
}

impl Hook {
    /// Makes a hook of what the configuration says.
    ///
    /// # Errors
    /// The key that is wrong, empty for the hook as a whole; and what was expected.
    pub fn new(
        name: &str,
        on: Option<Vec<String>>,
        exec: Option<Vec<String>>,
        url: Option<String>,
    ) -> Result<Self, (&'static str, String)> {
        check_name(name).map_err(|wrong| ("", wrong))?;
        let Some(on) = on.filter(|on| !on.is_empty()) else {
            return Err(("on", format!("expected types of events: {}", EVENT_TYPES.join(", "))));
        };
        if let Some(unknown) = on.iter().find(|kind| !EVENT_TYPES.contains(&kind.as_str())) {
            let expected = EVENT_TYPES.join(", ");
            return Err(("on", format!("expected some of {expected}; got {unknown:?}")));
        }
        let target = match (exec, url) {
            (Some(words), None) => {
                Target::Exec(check_exec(words).map_err(|wrong| ("exec", wrong))?)
            }
            (None, Some(url)) => Target::Url(check_url(url).map_err(|wrong| ("url", wrong))?),
            _ => return Err(("", "expected either exec or url".into())),
        };
        Ok(Self { name: name.to_owned(), on, target })
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let fits = !name.is_empty() && name.len() <= NAME_CHARS_MAX && name.chars().all(is_plain);
    let expected = || {
        format!("expected a name of 1 to {NAME_CHARS_MAX} letters, digits, - and _, got {name:?}")
    };
    fits.then_some(()).ok_or_else(expected)
}

fn check_exec(words: Vec<String>) -> Result<Vec<String>, String> {
    let Some(program) = words.first().filter(|program| !program.is_empty()) else {
        return Err("expected a program and its arguments, such as [\"/usr/bin/notify\"]".into());
    };
    if program.contains('/') && !program.starts_with('/') {
        return Err(format!("expected an absolute path or a name alone, got {program:?}"));
    }
    let is_long = |word: &String| word.len() > WORD_BYTES_MAX || word.contains('\0');
    if words.len() > WORDS_MAX || words.iter().any(is_long) {
        return Err(format!("expected at most {WORDS_MAX} words of {WORD_BYTES_MAX} bytes"));
    }
    Ok(words)
}

fn check_url(url: String) -> Result<String, String> {
    let expected = |what: &str| Err(format!("expected {what}, got {url:?}"));
    if url.len() > URL_BYTES_MAX || url.chars().any(|c| c.is_control() || c == ' ') {
        return expected("a URL");
    }
    if url.starts_with("https://") {
        return Ok(url);
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return expected("a URL that begins with https://");
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_local = LOOPBACK_HOSTS.iter().any(|host| {
        let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let rest = authority.strip_prefix(host);
        rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
    });
    match is_local {
        true => Ok(url),
        false => expected("https://, because others can read http:// outside of this machine"),
    }
}

/// The pause after a call has failed `failures` times, of which `random` takes up to a half.
pub fn backoff_ms(failures: u32, random: u64) -> u64 {
    let doubled = BACKOFF_MS_MIN.saturating_mul(1 << failures.saturating_sub(1).min(30));
    let pause_ms = doubled.min(BACKOFF_MS_MAX);
    pause_ms - random % (pause_ms / 2)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn a_hook_has_events_and_one_target_and_what_is_wrong_is_named() {
        let alert = || words(&["alert", "device-lost"]);
        let hook = Hook::new("mail", alert(), words(&["/bin/tell", "me"]), None).unwrap();
        assert_eq!(hook.target, Target::Exec(words(&["/bin/tell", "me"]).unwrap()));
        for (name, on, exec, url, key, expected) in [
            ("my hook", alert(), words(&["x"]), None, "", "expected a name"),
            ("a", None, words(&["x"]), None, "on", "alert-cleared"),
            ("a", words(&[]), words(&["x"]), None, "on", "alert-cleared"),
            ("a", words(&["alerts"]), words(&["x"]), None, "on", "got \"alerts\""),
            ("a", alert(), None, None, "", "either exec or url"),
            ("a", alert(), words(&["x"]), Some("https://x"), "", "either exec or url"),
            ("a", alert(), words(&[]), None, "exec", "a program and its arguments"),
            ("a", alert(), words(&["bin/x"]), None, "exec", "an absolute path"),
            ("a", alert(), words(&["x"; 65]), None, "exec", "at most 64 words"),
        ] {
            let url = url.map(str::to_owned);
            let (wrong, text) = Hook::new(name, on, exec, url).unwrap_err();
            assert_eq!(wrong, key, "{text}");
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_url_is_encrypted_or_stays_on_this_machine() {
        for url in [
            "https://example.org/x?y",
            "http://127.0.0.1:8080/x",
            "http://[::1]/",
            "http://localhost",
        ] {
            assert_eq!(check_url(url.into()), Ok(url.to_owned()));
        }
        for url in [
            "http://example.org/",
            "http://localhost.evil.org/",
            "http://127.0.0.1@evil.org/",
            "http://localhost:80@evil.org/",
            "http://127.0.0.10/",
            "ftp://x",
            "example.org",
            "https://a b",
            "",
        ] {
            assert!(check_url(url.into()).is_err(), "{url}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_are_spread() {
        let pauses = [1, 2, 3, 10, 11, 100].map(|failures| backoff_ms(failures, 0));
        assert_eq!(pauses, [1_000, 2_000, 4_000, 512_000, 600_000, 600_000]);
        assert!(
            (0..1000).map(|random| backoff_ms(2, random)).all(|ms| (1_000..=2_000).contains(&ms))
        );
    }
}
