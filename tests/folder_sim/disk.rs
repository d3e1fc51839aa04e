//! A directory on a disk, as the driver of a folder sees it.

use std::collections::BTreeMap;

use can_sync::core::folder::collide::Folding;
use can_sync::core::folder::path::FolderPath;
use can_sync::core::folder::three_way::DiskSays;
use can_sync::core::folder::version::Content;

/// Files, links and all directories. The parent of each is a directory in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) nodes: BTreeMap<FolderPath, Content>,
    pub(crate) folding: Folding,
}

/// The directories that a path is in, outermost first.
pub(crate) fn parents(path: &FolderPath) -> Vec<FolderPath> {
    let mut all: Vec<_> = std::iter::successors(path.parent(), FolderPath::parent).collect();
    all.reverse();
    all
}

pub(crate) fn is_below(path: &FolderPath, top: &FolderPath) -> bool {
    path.as_bytes().strip_prefix(top.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
}

impl Disk {
    pub(crate) fn says(&self, path: &FolderPath) -> DiskSays {
        match self.nodes.get(path) {
            Some(Content::Directory) if self.has_entries(path) => DiskSays::Occupied,
            Some(content) => DiskSays::Content(content.clone()),
            None => DiskSays::Content(Content::Absent),
        }
    }

    pub(crate) fn has_entries(&self, path: &FolderPath) -> bool {
        self.nodes.keys().any(|node| is_below(node, path))
    }

    /// The path under which a user finds `path`: on a disk that folds names, that of what is there.
    fn found(&self, path: &FolderPath) -> FolderPath {
        let mut found: Option<FolderPath> = None;
        for name in path.components() {
            let join = |name: &[u8]| match &found {
                Some(parent) => parent.join(name).unwrap(),
                None => FolderPath::from_bytes(name).unwrap(),
            };
            let wanted = join(name);
            let twin = self.twin(&wanted).unwrap_or(wanted);
            found = Some(twin);
        }
        found.unwrap()
    }

    /// What has the place of `path` in its directory under another name.
    fn twin(&self, path: &FolderPath) -> Option<FolderPath> {
        let form = self.folding.form(path.name());
        let is_twin = |node: &&FolderPath| {
            node.parent() == path.parent()
                && *node != path
                && self.folding.form(node.name()) == form
        };
        self.nodes.keys().find(is_twin).cloned()
    }

    /// Whether the path, or a directory that it is in, is left out for another name.
    pub(crate) fn is_left_out(&self, path: &FolderPath) -> bool {
        parents(path).iter().chain([path]).any(|path| self.twin(path).is_some())
    }

    /// Puts a node and its parents.
    pub(crate) fn put(&mut self, path: &FolderPath, content: Content) {
        for parent in parents(path) {
            self.nodes.insert(parent, Content::Directory);
        }
        self.nodes.insert(path.clone(), content);
    }

    pub(crate) fn remove(&mut self, path: &FolderPath) {
        self.nodes.retain(|node, _| node != path && !is_below(node, path));
    }

    /// A user puts something at a path, in place of what is in the way.
    pub(crate) fn user_puts(&mut self, path: &FolderPath, content: Content) {
        let path = self.found(path);
        for parent in parents(&path) {
            if self.nodes.get(&parent).is_some_and(|node| *node != Content::Directory) {
                self.remove(&parent);
            }
        }
        if content != Content::Directory || self.nodes.get(&path) != Some(&Content::Directory) {
            self.remove(&path);
        }
        self.put(&path, content);
    }

    /// A user renames a file or directory; nothing where that is not possible.
    pub(crate) fn user_renames(&mut self, from: &FolderPath, to: &FolderPath) {
        // A change of case alone; of the last name, since directories keep theirs.
        let is_same_place = self.found(to) == *from && to.parent() == from.parent();
        let to = if is_same_place { to.clone() } else { self.found(to) };
        let is_blocked = (self.nodes.contains_key(&to) && !is_same_place)
            || is_below(&to, from)
            || parents(&to).iter().any(|parent| {
                self.nodes.get(parent).is_some_and(|node| *node != Content::Directory)
            });
        if is_blocked || *from == to {
            return;
        }
        let moved: Vec<_> = self
            .nodes
            .iter()
            .filter(|(node, _)| *node == from || is_below(node, from))
            .map(|(node, content)| (node.clone(), content.clone()))
            .collect();
        self.remove(from);
        for (node, content) in moved {
            let rest = &node.as_bytes()[from.as_bytes().len()..];
            let bytes = [to.as_bytes(), rest].concat();
            self.put(&FolderPath::from_bytes(&bytes).unwrap(), content);
        }
    }
}
