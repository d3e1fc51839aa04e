//! Circles of imports: files that can only be understood together. A `pub use` passes a name on and is
//! no import.

use std::collections::{BTreeMap, BTreeSet};

/// Files in one circle, at most: so many can be held in the head.
const CIRCLE_FILES_MAX: usize = 3;

/// The names of a path, from the root of the crate.
type Names = Vec<String>;

/// The circles of more than [`CIRCLE_FILES_MAX`] files. `sources`: relative paths and code.
pub(super) fn large_circles(sources: &[(String, String)]) -> Vec<String> {
    let house = House::of(sources);
    let arrows: BTreeMap<&Names, BTreeSet<Names>> =
        house.files.keys().map(|file| (file, house.imports(file))).collect();
    let reached: BTreeMap<&Names, BTreeSet<Names>> =
        arrows.keys().map(|file| (*file, reachable(file, &arrows))).collect();
    let mut circles = BTreeSet::new();
    for (file, from_here) in &reached {
        let circle: Vec<String> = from_here
            .iter()
            .filter(|other| reached[other].contains(*file))
            .map(|other| other.join("::"))
            .collect();
        if circle.len() > CIRCLE_FILES_MAX {
            circles.insert(circle.join(", "));
        }
    }
    circles.into_iter().collect()
}

/// Everything that a file imports, directly or by way of others.
fn reachable(file: &Names, arrows: &BTreeMap<&Names, BTreeSet<Names>>) -> BTreeSet<Names> {
    let mut seen = BTreeSet::new();
    let mut waiting = vec![file];
    while let Some(next) = waiting.pop() {
        for import in &arrows[next] {
            if seen.insert(import.clone()) {
                waiting.push(import);
            }
        }
    }
    seen
}

struct House<'a> {
    /// Modules and their code.
    files: BTreeMap<Names, &'a str>,
    /// What modules export that others define: the module, the name, the full path.
    exports: BTreeMap<(Names, String), Names>,
}

impl<'a> House<'a> {
    fn of(sources: &'a [(String, String)]) -> Self {
        let files = sources.iter().map(|(path, code)| (module(path), code.as_str())).collect();
        let mut house = Self { files, exports: BTreeMap::new() };
        let mut exports = BTreeMap::new();
        for (file, code) in &house.files {
            for (is_public, path) in uses(code) {
                if let Some(full) = house.full(file, &path).filter(|_| is_public)
                    && let Some(name) = full.last()
                {
                    exports.insert((file.clone(), name.clone()), full);
                }
            }
        }
        house.exports = exports;
        house
    }

    /// The other files whose names a file takes.
    fn imports(&self, file: &Names) -> BTreeSet<Names> {
        let code = self.files[file];
        let used = uses(code).into_iter().filter(|(is_public, _)| !is_public);
        let used = used.map(|(_, path)| path);
        let named = paths(code).into_iter().filter(|path| path.len() > 1);
        let full = used.chain(named).filter_map(|path| self.full(file, &path));
        full.filter_map(|path| self.home(path)).filter(|home| home != file).collect()
    }

    /// A path from the root of the crate; `None` for one into another crate.
    fn full(&self, file: &Names, path: &[String]) -> Option<Names> {
        let supers = path.iter().take_while(|name| *name == "super").count();
        let up = |count: usize| file[..file.len().saturating_sub(count)].to_vec();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "super" => Some([&up(supers)[..], &path[supers..]].concat()),
            "self" => Some([&file[..], &path[1..]].concat()),
            child => {
                let inner = [&file[..], &[child.to_owned()]].concat();
                self.files.contains_key(&inner).then(|| [&file[..], path].concat())
            }
        }
    }

    /// The file that defines what a path names.
    fn home(&self, mut path: Names) -> Option<Names> {
        // Far more than there are rooms to pass a name on.
        for _ in 0..8 {
            let length = (1..=path.len()).rev().find(|n| self.files.contains_key(&path[..*n]))?;
            let (file, rest) = path.split_at(length);
            let export = rest.first().map(|name| (file.to_vec(), name.clone()));
            match export.and_then(|export| self.exports.get(&export)) {
                Some(full) if *full != path => path = full.clone(),
                _ => return Some(file.to_vec()),
            }
        }
        None
    }
}

/// The module of a file.
fn module(path: &str) -> Names {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    let names = path.split('/').map(str::to_owned).collect();
    if path == "lib" { Vec::new() } else { names }
}

/// Each path that `use` names, and whether it is exported.
fn uses(code: &str) -> Vec<(bool, Names)> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("use ") {
        let Some((tree, next)) = after.split_once(';') else { break };
        let line = before.lines().last().unwrap_or("").trim();
        if line.is_empty() || line.starts_with("pub") {
            let mut paths = Vec::new();
            expand(tree, &[], &mut paths);
            found.extend(paths.into_iter().map(|path| (line.starts_with("pub"), path)));
        }
        rest = next;
    }
    found
}

/// The paths of a tree like `a::{b, c::{d, e}}`.
fn expand(tree: &str, before: &[String], found: &mut Vec<Names>) {
    let (path, inner) = tree.split_once('{').map_or((tree, None), |(path, rest)| {
        (path, Some(rest.rsplit_once('}').map_or(rest, |(inner, _)| inner)))
    });
    let path = path.split(" as ").next().unwrap_or(path);
    let names = path.split("::").map(str::trim).filter(|name| !name.is_empty());
    let names: Names = before.iter().cloned().chain(names.map(str::to_owned)).collect();
    let Some(inner) = inner else {
        found.push(names);
        return;
    };
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                expand(&inner[start..at], &names, found);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        expand(&inner[start..], &names, found);
    }
}

/// The paths in the code itself, such as `super::a::f`.
fn paths(code: &str) -> Vec<Names> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.split(|c| !is_path(c))
        .filter(|path| ["crate::", "super::", "self::"].iter().any(|root| path.starts_with(root)))
        .map(|path| path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect())
        .collect()
}

#[test]
fn a_circle_of_files_is_found_also_by_way_of_exports() {
    let file = |path: &str, code: &str| (path.to_owned(), code.to_owned());
    let mut sources = vec![
        file("a/mod.rs", "mod b;\nmod c;\npub use self::b::B;\n"),
        file("a/b.rs", "use super::c::{C, D as E};\npub struct B;\n"),
        file("a/c.rs", "use crate::d;\nfn f() { d::f() }\n"),
        file("d.rs", "fn f() { crate::e::g::<u8>() }\n"),
        file("e.rs", "use crate::a::B;\n"),
    ];
    assert_eq!(large_circles(&sources), ["a::b, a::c, d, e"]);
    sources[4].1 = "use std::a::B;\n".to_owned();
    assert!(large_circles(&sources).is_empty());
}
