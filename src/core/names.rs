//! Patterns over the names of assets: what `ls --name` and the commands that take a name match.
//!
//! A text without `/` is compared with the name, one with `/` with path and name together. Upper and
//! lower case differ. Names come from other devices: matching takes time at most in proportion to the
//! length of the pattern times that of the name.

use crate::core::attributes::canonical_text;

/// Which names are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    kind: Kind,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exact,
    Start,
    Glob,
}

impl NamePattern {
    /// The name itself, or the end of path and name from the start of a component on.
    pub fn exact(text: &str) -> Self {
        Self { kind: Kind::Exact, text: canonical_text(text) }
    }

    /// The start of the name, or the end of the path and the start of the name.
    pub fn start(text: &str) -> Self {
        Self { kind: Kind::Start, text: canonical_text(text) }
    }

    /// A glob: `*` is any characters, `?` is one, `[a-z]` one of these, `[!a-z]` one of the others.
    pub fn glob(text: &str) -> Self {
        Self { kind: Kind::Glob, text: canonical_text(text) }
    }

    /// Whether a text has characters that mean something in a glob.
    pub fn is_glob(text: &str) -> bool {
        text.contains(['*', '?', '['])
    }

    /// Whether a name in a folder is meant.
    pub fn fits(&self, path: &str, name: &str) -> bool {
        if name.is_empty() {
            return false;
        }
        let (folder, last) = match (self.kind, self.text.rsplit_once('/')) {
            (Kind::Glob, None) => return matches(&self.text, name),
            (Kind::Glob, Some(_)) => return matches(&self.text, &full_name(path, name)),
            (_, None) => (None, self.text.as_str()),
            (_, Some((folder, last))) => (Some(folder), last),
        };
        let is_in = folder.is_none_or(|folder| {
            let above = path.strip_suffix(folder);
            above.is_some_and(|above| above.is_empty() || above.ends_with('/'))
        });
        is_in && if self.kind == Kind::Exact { name == last } else { name.starts_with(last) }
    }

    /// How every name that is meant starts, so that an index can find them.
    pub fn name_start(&self) -> &str {
        match (self.kind, self.text.rsplit_once('/')) {
            (Kind::Glob, Some(_)) => "",
            (Kind::Glob, None) => self.text.split(['*', '?', '[']).next().unwrap_or_default(),
            (_, Some((_, last))) => last,
            (_, None) => &self.text,
        }
    }

    /// A glob that all of these names match, and maybe others.
    pub fn to_glob(&self) -> String {
        if self.kind == Kind::Glob {
            return self.text.clone();
        }
        let mut glob = String::new();
        for character in self.name_start().chars() {
            match character {
                '*' | '?' | '[' => glob.extend(['[', character, ']']),
                _ => glob.push(character),
            }
        }
        if self.kind == Kind::Start {
            glob.push('*');
        }
        glob
    }
}

/// Path and name together.
pub fn full_name(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

/// Whether the whole text matches a glob. After a mismatch only the last `*` takes one more character:
/// what the ones before it took can stay, because a later `*` takes whatever they left.
fn matches(glob: &str, text: &str) -> bool {
    let (mut glob, mut text) = (glob, text);
    let mut retry: Option<(&str, &str)> = None;
    loop {
        let mut rest = text.chars();
        let step = match (glob.chars().next(), rest.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                glob = &glob[1..];
                retry = Some((glob, text));
                continue;
            }
            (Some(_), Some(character)) => one(glob, character),
            _ => None,
        };
        match (step, retry) {
            (Some(after), _) => (glob, text) = (after, rest.as_str()),
            (None, Some((after_star, from))) => {
                let mut rest = from.chars();
                if rest.next().is_none() {
                    return false;
                }
                retry = Some((after_star, rest.as_str()));
                (glob, text) = (after_star, rest.as_str());
            }
            (None, None) => return false,
        }
    }
}

/// The glob after its first element, if that matches the character.
fn one(glob: &str, character: char) -> Option<&str> {
    let mut elements = glob.chars();
    match elements.next()? {
        '?' => Some(elements.as_str()),
        '[' => match set(elements.as_str()) {
            Some((set, after)) => is_in(set, character).then_some(after),
            // Without its end it is an ordinary character.
            None => (character == '[').then_some(elements.as_str()),
        },
        other => (other == character).then_some(elements.as_str()),
    }
}

/// Splits what follows `[` into the set and what is after `]`, which may be the set's first character.
fn set(after: &str) -> Option<(&str, &str)> {
    let skipped = after.chars().take_while(|c| *c == '!').count().min(1);
    let first = after[skipped..].chars().next()?;
    let from = skipped + first.len_utf8();
    let end = from + after[from..].find(']')?;
    Some((&after[..end], &after[end + 1..]))
}

fn is_in(set: &str, character: char) -> bool {
    let (members, is_negated) = match set.strip_prefix('!') {
        Some(members) if !members.is_empty() => (members, true),
        _ => (set, false),
    };
    let members: Vec<char> = members.chars().collect();
    let mut found = false;
    let mut at = 0;
    while at < members.len() {
        let range = members.get(at + 1..at + 3);
        if let Some(['-', last]) = range {
            found |= (members[at]..=*last).contains(&character);
            at += 3;
        } else {
            found |= members[at] == character;
            at += 1;
        }
    }
    found != is_negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_matches_whole_names() {
        for (glob, name, fits) in [
            ("*.jpg", "sea.jpg", true),
            ("*.jpg", "sea.jpeg", false),
            ("*", "x", true),
            ("?ea*", "sea.jpg", true),
            ("?", "é", true),
            ("s*a*.j*g", "sea of a.jpg", true),
            ("a*b*c", "aXbXbX", false),
            ("[a-c]1", "b1", true),
            ("[a-c]1", "d1", false),
            ("[!a-c]1", "d1", true),
            ("[!]1", "]1", false),
            ("[]x]1", "]1", true),
            ("[a-]", "-", true),
            ("[*]", "*", true),
            ("[*]", "x", false),
            ("a[b", "a[b", true),
            ("Sea", "sea", false),
            ("", "x", false),
        ] {
            assert_eq!(NamePattern::glob(glob).fits("", name), fits, "{glob} {name}");
        }
        let slow = format!("{}b", "*a".repeat(200));
        assert!(!NamePattern::glob(&slow).fits("", &"a".repeat(5000)));
    }

    #[test]
    fn a_text_with_a_slash_is_compared_with_path_and_name() {
        let fits = |pattern: NamePattern| pattern.fits("pictures/2024", "sea.jpg");
        assert!(fits(NamePattern::glob("pictures/*.jpg")));
        assert!(!fits(NamePattern::glob("2024/*.jpg")));
        for (text, is_exact, is_start) in [
            ("sea.jpg", true, true),
            ("sea", false, true),
            ("2024/sea.jpg", true, true),
            ("pictures/2024/se", false, true),
            ("024/sea.jpg", false, false),
            ("2023/sea.jpg", false, false),
        ] {
            assert_eq!(fits(NamePattern::exact(text)), is_exact, "{text}");
            assert_eq!(fits(NamePattern::start(text)), is_start, "{text}");
        }
        assert!(!NamePattern::start("x/a").fits("", "a"));
        assert!(!NamePattern::glob("*").fits("", ""), "an asset without a name has none");
    }

    #[test]
    fn an_index_and_another_store_find_whatever_is_meant() {
        for (pattern, start, glob) in [
            (NamePattern::exact("d/a*"), "a*", "a[*]"),
            (NamePattern::start("a["), "a[", "a[[]*"),
            (NamePattern::glob("ab?c"), "ab", "ab?c"),
            (NamePattern::glob("d/ab*"), "", "d/ab*"),
        ] {
            assert_eq!((pattern.name_start(), pattern.to_glob().as_str()), (start, glob));
        }
    }
}
