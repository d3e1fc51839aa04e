//! The object stores of git repositories in a folder. Git keeps each new object in a file of its own,
//! and later moves very many of them into one pack (`git gc`): thousands of files go at once, and
//! nothing is lost.

use super::path::FolderPath;

/// A file that git keeps in an object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GitFile<'a> {
    /// The directory of the object store: `.git/objects` or, of a bare repository, `objects`.
    pub store: &'a [u8],
    /// Whether the path is an object, a pack or a file that belongs to a pack.
    pub kind: GitFileKind,
}

/// What git keeps in an object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitFileKind {
    /// One object: `ab/` and the rest of its hash.
    Object,
    /// Many objects: `pack/pack-HASH.pack`.
    Pack,
    /// What belongs to a pack, such as its index.
    BesidePack,
}

/// What git keeps at this path. Only names that git itself gives count: a hash (SHA-1 or SHA-256) in
/// lower-case hexadecimal digits.
pub fn git_file(path: &FolderPath) -> Option<GitFile<'_>> {
    let bytes = path.as_bytes();
    let mut parts = bytes.rsplitn(3, |byte| *byte == b'/');
    let (name, dir, store) = (parts.next()?, parts.next()?, parts.next()?);
    if store != b"objects" && !store.ends_with(b"/objects") {
        return None;
    }
    let kind = match name.strip_prefix(b"pack-") {
        Some(rest) if dir == b"pack" => {
            let dot = rest.iter().position(|byte| *byte == b'.')?;
            let (hash, extension) = rest.split_at(dot);
            is_hex(hash, &[40, 64]).then_some(match extension {
                b".pack" => GitFileKind::Pack,
                _ => GitFileKind::BesidePack,
            })
        }
        _ => (is_hex(dir, &[2]) && is_hex(name, &[38, 62])).then_some(GitFileKind::Object),
    };
    Some(GitFile { store, kind: kind? })
}

fn is_hex(bytes: &[u8], lengths: &[usize]) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    lengths.contains(&bytes.len()) && bytes.iter().all(is_digit)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_packs_are_told_by_the_names_that_git_gives_and_nothing_else_is_one() {
        let path = |text: &str| FolderPath::from_text(text).unwrap();
        let kind = |text: &str| git_file(&path(text)).map(|file| file.kind);
        let (sha1, sha256) = ("0123456789abcdef0123456789abcdef01234567", "ab".repeat(32));
        let object = format!("code/.git/objects/ab/{}", &sha1[2..]);
        assert_eq!(
            git_file(&path(&object)),
            Some(GitFile { store: b"code/.git/objects", kind: GitFileKind::Object })
        );
        assert_eq!(kind(&format!("objects/ab/{}", &sha256[2..])), Some(GitFileKind::Object));
        let pack = |extension: &str| kind(&format!(".git/objects/pack/pack-{sha1}.{extension}"));
        assert_eq!(pack("pack"), Some(GitFileKind::Pack));
        assert_eq!(pack("idx"), Some(GitFileKind::BesidePack));
        for other in [
            "objects/ab/plan.txt".to_owned(),
            format!("my-objects/ab/{}", &sha1[2..]),
            format!("objects/abc/{}", &sha1[2..]),
            format!("objects/ab/{}", sha1.to_uppercase()),
            format!("objects/ab/{}.locked", &sha1[2..]),
            "objects/pack/pack-1.pack".to_owned(),
            format!("objects/pack/pack-{sha1}"),
            format!("ab/{}", &sha1[2..]),
            "objects".to_owned(),
        ] {
            assert_eq!(kind(&other), None, "{other}");
        }
    }
}
