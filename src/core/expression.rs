//! Expressions that select assets, such as `type=image/* and not tag=private`: their syntax, and whether
//! an asset matches.
//!
//! ```text
//! or    = and { "or" and }
//! and   = not { "and" not }
//! not   = "not" not | "(" or ")" | test
//! test  = ("tag" | "type" | "name" | "folder" | "added-by") "=" text
//!       | ("size" | "age" | "copies") ("<" | "<=" | ">" | ">=") number
//! ```
//!
//! X1  A text that does not parse is refused with the position and what was expected there. The length
//!     and the depth of nesting are bounded.
//! X2  An expression that is printed and parsed again is the same expression.
//! X3  Logic is three-valued: a test on an unknown property is neither true nor false. An asset matches
//!     only if the expression is true.
//! X4  Fetching or evicting an asset does not change whether it matches. So there is no test for what
//!     this device holds, and `copies` counts the copies on other devices only.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use unicode_normalization::UnicodeNormalization as _;

use crate::core::limits::{EXPRESSION_BYTES_MAX, EXPRESSION_DEPTH_MAX};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Units of sizes, largest first.
const SIZES: [(&str, u64); 5] =
    [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("", 1)];

/// Units of times, largest first.
const TIMES: [(&str, u64); 6] = [
    ("y", 365 * DAY_MS),
    ("w", 7 * DAY_MS),
    ("d", DAY_MS),
    ("h", 3600 * 1000),
    ("m", 60 * 1000),
    ("s", 1000),
];

/// Words that a user may try for what this device holds. There is no such test, see X4.
const HELD_WORDS: [&str; 4] = ["present", "here", "held", "missing"];

const TESTS: &str =
    "a test, such as tag=, type=, name=, folder=, added-by=, size>, age< or copies<";

/// What is known about an asset; `None` where nothing is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AssetFacts {
    /// The asset's tags.
    pub tags: Option<BTreeSet<String>>,
    /// The asset's media type; empty when the content shows none.
    pub media_type: Option<String>,
    /// The asset's file name; empty when it has none.
    pub name: Option<String>,
    /// The names of the shared folders that it is in.
    pub folders: Option<BTreeSet<String>>,
    /// The name and the node ID of the device that added it.
    pub added_by: Option<Vec<String>>,
    /// The asset's size.
    pub size_bytes: Option<u64>,
    /// How long ago it was added to the group.
    pub age_ms: Option<u64>,
    /// On how many other devices it is known to be.
    pub copies: Option<u64>,
}

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// True if all parts are true.
    And(Vec<Expression>),
    /// True if at least one part is true.
    Or(Vec<Expression>),
    /// True if the part is false.
    Not(Box<Expression>),
    /// True if a text of the asset matches the pattern.
    Text(TextField, String),
    /// True if a number of the asset compares so with the given one, which is in bytes, milliseconds or
    /// copies.
    Number(NumberField, Compare, u64),
}

/// A property of an asset that is a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextField {
    /// A tag.
    Tag,
    /// The media type.
    Type,
    /// The file name.
    Name,
    /// The name of a shared folder.
    Folder,
    /// The device that added it.
    AddedBy,
}

/// A property of an asset that is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberField {
    /// The asset's size in bytes.
    Size,
    /// Milliseconds since it was added to the group.
    Age,
    /// The number of copies on other devices.
    Copies,
}

/// How a number is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
}

/// Where a text does not parse, and why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("at character {}: expected {expected}, found {found}", .at + 1)]
pub struct ParseError {
    /// The number of characters before that place.
    pub at: usize,
    /// What was expected there.
    pub expected: String,
    /// What was found there.
    pub found: String,
}

impl TextField {
    const ALL: [Self; 5] = [Self::Tag, Self::Type, Self::Name, Self::Folder, Self::AddedBy];

    const fn word(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Type => "type",
            Self::Name => "name",
            Self::Folder => "folder",
            Self::AddedBy => "added-by",
        }
    }
}

impl NumberField {
    const ALL: [Self; 3] = [Self::Size, Self::Age, Self::Copies];

    const fn word(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Age => "age",
            Self::Copies => "copies",
        }
    }

    /// The units of its numbers, largest first. A number is printed in the first unit in which it is a
    /// whole number.
    const fn units(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Size => &SIZES,
            Self::Age => &TIMES,
            Self::Copies => &[("", 1)],
        }
    }

    const fn example(self) -> &'static str {
        match self {
            Self::Size => "a size, such as 500K, 20M or 1.5G",
            Self::Age => "a time, such as 12h, 90d or 2y",
            Self::Copies => "a number of copies",
        }
    }
}

impl Compare {
    const ALL: [Self; 4] = [Self::AtMost, Self::AtLeast, Self::Less, Self::More];

    const fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::More => ">",
            Self::AtLeast => ">=",
        }
    }

    fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::More => left > right,
            Self::AtLeast => left >= right,
        }
    }
}

impl Expression {
    /// Parses a text.
    ///
    /// # Errors
    /// The first position at which the text does not parse; or the text is longer or nested deeper than
    /// the limits allow.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(ParseError {
                at: 0,
                expected: format!("at most {EXPRESSION_BYTES_MAX} bytes"),
                found: format!("{} bytes", text.len()),
            });
        }
        let mut parser = Parser { text, at: 0, depth: 0 };
        let expression = parser.or()?;
        match parser.rest().is_empty() {
            true => Ok(expression),
            false => Err(parser.expected("`and`, `or` or the end")),
        }
    }

    /// Whether the asset matches. False while too little is known about it.
    pub fn matches(&self, facts: &AssetFacts) -> bool {
        self.judge(facts) == Some(true)
    }

    /// Whether the asset matches; `None` if that depends on a property that is not known.
    pub fn judge(&self, facts: &AssetFacts) -> Option<bool> {
        match self {
            Self::And(parts) => all(parts.iter().map(|part| part.judge(facts))),
            Self::Or(parts) => {
                let none = all(parts.iter().map(|part| part.judge(facts).map(|is| !is)));
                none.map(|none| !none)
            }
            Self::Not(part) => part.judge(facts).map(|is| !is),
            Self::Text(field, text) => judge_text(*field, text, facts),
            Self::Number(field, compare, number) => {
                let found = match field {
                    NumberField::Size => facts.size_bytes,
                    NumberField::Age => facts.age_ms,
                    NumberField::Copies => facts.copies,
                };
                found.map(|found| compare.holds(found, *number))
            }
        }
    }

    /// Whether the result changes with time alone, because the expression tests the age.
    pub fn depends_on_age(&self) -> bool {
        self.has(&|part| matches!(part, Self::Number(NumberField::Age, ..)))
    }

    /// Whether the expression tests the number of copies.
    pub fn depends_on_copies(&self) -> bool {
        self.has(&|part| matches!(part, Self::Number(NumberField::Copies, ..)))
    }

    /// Whether the expression tests shared folders.
    pub fn depends_on_folders(&self) -> bool {
        self.has(&|part| matches!(part, Self::Text(TextField::Folder, _)))
    }

    fn has(&self, is_it: &dyn Fn(&Self) -> bool) -> bool {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter().any(|part| part.has(is_it)),
            Self::Not(part) => part.has(is_it),
            test => is_it(test),
        }
    }

    fn is_compound(&self) -> bool {
        matches!(self, Self::And(_) | Self::Or(_))
    }
}

/// Three-valued "and": false if one part is false, unknown if none is false but one is unknown.
fn all(parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut known = true;
    for part in parts {
        match part {
            Some(false) => return Some(false),
            Some(true) => {}
            None => known = false,
        }
    }
    known.then_some(true)
}

fn judge_text(field: TextField, text: &str, facts: &AssetFacts) -> Option<bool> {
    match field {
        TextField::Tag => facts.tags.as_ref().map(|tags| tags.contains(text)),
        // `image/` means all images, as for `ls --type`.
        TextField::Type => facts.media_type.as_ref().map(|found| match text.ends_with('/') {
            true => fits(&format!("{text}*"), found),
            false => fits(text, found),
        }),
        TextField::Name => facts.name.as_ref().map(|found| fits(text, found)),
        TextField::Folder => {
            facts.folders.as_ref().map(|names| names.iter().any(|name| fits(text, name)))
        }
        TextField::AddedBy => {
            facts.added_by.as_ref().map(|names| names.iter().any(|name| fits(text, name)))
        }
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters; upper and lower case are
/// the same.
fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_lowercase(), text.to_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

struct Parser<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn or(&mut self) -> Result<Expression, ParseError> {
        let first = self.and()?;
        let mut parts = vec![first];
        while self.word("or") {
            parts.push(self.and()?);
        }
        Ok(one_or(parts, Expression::Or))
    }

    fn and(&mut self) -> Result<Expression, ParseError> {
        let first = self.not()?;
        let mut parts = vec![first];
        while self.word("and") {
            parts.push(self.not()?);
        }
        Ok(one_or(parts, Expression::And))
    }

    fn not(&mut self) -> Result<Expression, ParseError> {
        self.depth += 1;
        if self.depth > EXPRESSION_DEPTH_MAX {
            return Err(self.expected(&format!("at most {EXPRESSION_DEPTH_MAX} levels")));
        }
        let read = if self.word("not") {
            Expression::Not(Box::new(self.not()?))
        } else if self.sign("(") {
            let inner = self.or()?;
            if !self.sign(")") {
                return Err(self.expected("`and`, `or` or `)`"));
            }
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(read)
    }

    fn test(&mut self) -> Result<Expression, ParseError> {
        let rest = self.rest();
        let is_key = |c: char| c.is_ascii_lowercase() || c == '-';
        let key = &rest[..rest.find(|c| !is_key(c)).unwrap_or(rest.len())];
        if HELD_WORDS.contains(&key) {
            let why = format!(
                "{TESTS}; `{key}` is no test, because following it would change its answer"
            );
            return Err(self.expected(&why));
        }
        let (text_field, number_field) = (
            TextField::ALL.into_iter().find(|field| field.word() == key),
            NumberField::ALL.into_iter().find(|field| field.word() == key),
        );
        let key_len = key.len();
        if let Some(field) = text_field {
            self.at += key_len;
            if !self.sign("=") {
                return Err(self.expected("`=`"));
            }
            return Ok(Expression::Text(field, self.value()?));
        }
        let Some(field) = number_field else { return Err(self.expected(TESTS)) };
        self.at += key_len;
        let Some(compare) = Compare::ALL.into_iter().find(|compare| self.sign(compare.sign()))
        else {
            return Err(self.expected("`<`, `<=`, `>` or `>=`"));
        };
        self.number(field).map(|number| Expression::Number(field, compare, number))
    }

    /// A word, or any text in double quotes, in which `\` takes the next character as it is.
    fn value(&mut self) -> Result<String, ParseError> {
        let rest = self.rest();
        if !rest.starts_with('"') {
            let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '"'));
            let word = &rest[..end.unwrap_or(rest.len())];
            if word.is_empty() {
                return Err(self.expected("a text, in double quotes if it has spaces"));
            }
            let (len, word) = (word.len(), word.nfc().collect());
            self.at += len;
            return Ok(word);
        }
        let mut value = String::new();
        let mut is_escaped = false;
        for (index, c) in rest.char_indices().skip(1) {
            match c {
                _ if is_escaped => {
                    is_escaped = false;
                    value.push(c);
                }
                '\\' => is_escaped = true,
                '"' if value.is_empty() => return Err(self.expected("a text that is not empty")),
                '"' => {
                    self.at += index + 1;
                    return Ok(value.nfc().collect());
                }
                _ => value.push(c),
            }
        }
        self.at = self.text.len();
        Err(self.expected("a closing `\"`"))
    }

    /// A number with at most three decimals and a unit.
    fn number(&mut self, field: NumberField) -> Result<u64, ParseError> {
        let rest = self.rest();
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '(' | ')'));
        let word = &rest[..end.unwrap_or(rest.len())];
        let Some(number) = number_of(word, field) else {
            return Err(self.expected(field.example()));
        };
        let len = word.len();
        self.at += len;
        Ok(number)
    }

    /// Skips white space; returns the rest.
    fn rest(&mut self) -> &str {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        &self.text[self.at..]
    }

    fn sign(&mut self, sign: &str) -> bool {
        let is_next = self.rest().starts_with(sign);
        self.at += if is_next { sign.len() } else { 0 };
        is_next
    }

    fn word(&mut self, word: &str) -> bool {
        let is_next = self.rest().strip_prefix(word).is_some_and(|after| {
            after.chars().next().is_none_or(|c| c.is_whitespace() || matches!(c, '(' | ')'))
        });
        self.at += if is_next { word.len() } else { 0 };
        is_next
    }

    fn expected(&mut self, expected: &str) -> ParseError {
        let rest = self.rest();
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let found: String = rest[..end].chars().take(40).collect();
        let found = if found.is_empty() { "the end".to_owned() } else { format!("`{found}`") };
        let at = self.text[..self.at].chars().count();
        ParseError { at, expected: expected.to_owned(), found }
    }
}

fn one_or(mut parts: Vec<Expression>, join: fn(Vec<Expression>) -> Expression) -> Expression {
    match parts.len() {
        1 => parts.remove(0),
        _ => join(parts),
    }
}

fn number_of(word: &str, field: NumberField) -> Option<u64> {
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    let (number, unit) = word.split_at(end);
    let unit = match field {
        NumberField::Size => unit.trim_end_matches("iB").to_ascii_uppercase(),
        NumberField::Age | NumberField::Copies => unit.to_owned(),
    };
    let (_, scale) = *field.units().iter().find(|(name, _)| *name == unit)?;
    let Some((whole, decimals)) = number.split_once('.') else {
        return number.parse::<u64>().ok()?.checked_mul(scale);
    };
    if scale == 1 || !(1..=3).contains(&decimals.len()) || decimals.contains('.') {
        return None;
    }
    let thousandths: u64 = format!("{decimals:0<3}").parse().ok()?;
    let part = u64::try_from(u128::from(scale) * u128::from(thousandths) / 1000).ok()?;
    whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(part)
}

impl FromStr for Expression {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = |f: &mut fmt::Formatter<'_>, part: &Self| match part.is_compound() {
            true => write!(f, "({part})"),
            false => write!(f, "{part}"),
        };
        match self {
            Self::And(parts) | Self::Or(parts) => {
                let join = if matches!(self, Self::And(_)) { " and " } else { " or " };
                for (index, part) in parts.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { join })?;
                    inner(f, part)?;
                }
                Ok(())
            }
            Self::Not(part) => {
                f.write_str("not ")?;
                inner(f, part)
            }
            Self::Text(field, text) => {
                let is_word =
                    !text.contains(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '"'));
                f.write_str(field.word())?;
                if is_word && !text.is_empty() {
                    return write!(f, "={text}");
                }
                let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
                write!(f, "=\"{quoted}\"")
            }
            Self::Number(field, compare, number) => {
                let whole = |(_, scale): &&(&str, u64)| number % scale == 0 && *number >= *scale;
                let (unit, scale) = match field.units().iter().find(whole) {
                    Some(found) => *found,
                    // Zero, or a part of a second.
                    None => *field.units().last().unwrap_or(&("", 1)),
                };
                write!(f, "{}{}", field.word(), compare.sign())?;
                match number % scale {
                    0 => write!(f, "{}{unit}", number / scale),
                    part => write!(f, "{}.{:03}{unit}", number / scale, part * 1000 / scale),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
