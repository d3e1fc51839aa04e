//! Judges a set of facts: which removals count, which facts they void, and who is left. The rules are
//! in the head of [`super`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::core::ids::{NodeId, OpHash};
use crate::core::limits::FACTS_PER_AUTHOR_MAX;

use super::ledger::Said;
use super::{FactKind, Removal, Verdicts};

/// The verdicts over all facts.
pub(super) fn judge(said: &BTreeMap<NodeId, Arc<Said>>) -> Verdicts {
    let authors = distances(said);
    let speakers = speakers(said, &authors);
    let mut contest = Contest::new(&speakers, &authors);
    contest.run();

    let standing = contest.standing();
    let mut removed: BTreeSet<NodeId> = authors.keys().copied().collect();
    removed.retain(|id| said.get(id).is_some_and(|said| is_too_many(said)));
    let counts =
        |removal: &&Contender<'_>| standing.admitted.has(removal.by) && contest.is_live(removal);
    removed.extend(contest.removals.iter().filter(counts).map(|removal| removal.what.device));

    let introducer = contest.stays(&standing);
    let void = contest.void_ops();
    Verdicts { legit: introducer.keys().copied().collect(), removed, introducer, void, authors }
}

/// The authors with those of their facts that may count. Of an author with too many facts (M4)
/// these are the facts that another author's fence names.
fn speakers(
    said: &BTreeMap<NodeId, Arc<Said>>,
    authors: &BTreeMap<NodeId, usize>,
) -> BTreeMap<NodeId, Arc<Said>> {
    let mut speakers: BTreeMap<NodeId, Arc<Said>> = BTreeMap::new();
    let mut named: BTreeMap<NodeId, BTreeSet<OpHash>> = BTreeMap::new();
    for (id, said) in said.iter().filter(|(id, _)| authors.contains_key(id)) {
        if is_too_many(said) {
            continue;
        }
        speakers.insert(*id, Arc::clone(said));
        for what in said.values() {
            if let FactKind::Remove(Removal { device, fence: Some(fence), .. }) = what {
                named.entry(*device).or_default().extend(fence);
            }
        }
    }
    for (id, ops) in named {
        let Some(said) = said.get(&id).filter(|said| is_too_many(said)) else { continue };
        if authors.contains_key(&id) {
            let said = said.iter().filter(|((op, _), _)| ops.contains(op));
            let said: Said = said.map(|(at, what)| (*at, what.clone())).collect();
            speakers.insert(id, Arc::new(said));
        }
    }
    speakers
}

fn is_too_many(said: &Said) -> bool {
    said.len() > FACTS_PER_AUTHOR_MAX
}

/// The number of introductions between the founder and each device that it reaches over adds.
fn distances(said: &BTreeMap<NodeId, Arc<Said>>) -> BTreeMap<NodeId, usize> {
    let founders = said.iter().filter(|(_, said)| is_founder(said));
    let mut distances: BTreeMap<NodeId, usize> = founders.map(|(id, _)| (*id, 0)).collect();
    let mut queue: VecDeque<(NodeId, usize)> =
        distances.iter().map(|(id, at)| (*id, *at)).collect();
    while let Some((by, at)) = queue.pop_front() {
        for what in said.get(&by).iter().flat_map(|said| said.values()) {
            let FactKind::Add(device) = what else { continue };
            if !distances.contains_key(device) {
                distances.insert(*device, at + 1);
                queue.push_back((*device, at + 1));
            }
        }
    }
    distances
}

fn is_founder(said: &Said) -> bool {
    said.values().any(|what| matches!(what, FactKind::Genesis))
}

/// A removal and whether it was decided.
struct Contender<'a> {
    what: &'a Removal,
    /// The index of the speaker that made the removal, and of its op.
    by: usize,
    op: usize,
    /// The number of the removed speaker; `None` if it stated no facts.
    of: Option<usize>,
    /// The ops of that speaker that the fence excludes.
    attack: Bits,
    /// Whether this removal is known to prevail: then the ops that it attacks are void.
    is_decided: bool,
}

/// All undecided removals of one device by one author, taken together.
struct Pair {
    by: usize,
    of: usize,
    attack: Bits,
    /// The numbers of the author's ops with these removals.
    ops: Bits,
    /// The speakers that would be admitted if it prevailed.
    leaves: Bits,
}

/// The admitted speakers, and for each speaker those that remove it.
struct Standing {
    admitted: Bits,
    removers: Vec<BTreeSet<usize>>,
}

/// Works out which removals prevail. Speakers, the authors whose facts count, are numbered, and so
/// are the ops of each.
struct Contest<'a> {
    ids: Vec<NodeId>,
    distance: Vec<usize>,
    founders: Vec<usize>,
    ops: Vec<Vec<OpHash>>,
    /// Per speaker its adds: the number of the op, and the added device.
    adds: Vec<Vec<(usize, NodeId)>>,
    numbers: BTreeMap<NodeId, usize>,
    removals: Vec<Contender<'a>>,
    /// Per speaker its void ops, by the speaker whose removal voids them.
    struck: Vec<BTreeMap<usize, Bits>>,
}

impl<'a> Contest<'a> {
    fn new(speakers: &'a BTreeMap<NodeId, Arc<Said>>, authors: &BTreeMap<NodeId, usize>) -> Self {
        let ids: Vec<NodeId> = speakers.keys().copied().collect();
        let numbers: BTreeMap<NodeId, usize> =
            ids.iter().enumerate().map(|(number, id)| (*id, number)).collect();
        let ops_of = |said: &Arc<Said>| {
            let mut ops: Vec<OpHash> = said.keys().map(|(op, _)| *op).collect();
            ops.dedup();
            ops
        };
        let ops: Vec<Vec<OpHash>> = speakers.values().map(ops_of).collect();
        let mut adds = vec![Vec::new(); ids.len()];
        let mut removals = Vec::new();
        for (by, said) in speakers.values().enumerate() {
            for ((op, _), what) in said.iter() {
                let Ok(op) = ops[by].binary_search(op) else { continue };
                match what {
                    FactKind::Genesis => {}
                    FactKind::Add(device) => adds[by].push((op, *device)),
                    FactKind::Remove(what) => {
                        // A device that removes itself leaves and voids nothing.
                        let of = numbers.get(&what.device).copied().filter(|of| *of != by);
                        let attack = of.map(|of| beyond(what, &ops[of])).unwrap_or_default();
                        let is_decided = false;
                        removals.push(Contender { what, by, op, of, attack, is_decided });
                    }
                }
            }
        }
        let founders = speakers.values().enumerate().filter(|(_, said)| is_founder(said));
        Self {
            distance: ids.iter().map(|id| authors.get(id).copied().unwrap_or(usize::MAX)).collect(),
            founders: founders.map(|(number, _)| number).collect(),
            struck: vec![BTreeMap::new(); ids.len()],
            ids,
            ops,
            adds,
            numbers,
            removals,
        }
    }

    /// Decides removals, those of authors close to the founder first, until no undecided one
    /// prevails against all that would undo it.
    fn run(&mut self) {
        loop {
            let standing = self.standing();
            let pairs = self.open_pairs(&standing);
            // For each speaker the pairs that may void its facts.
            let mut against: Vec<Vec<&Pair>> = vec![Vec::new(); self.ids.len()];
            for pair in pairs.values() {
                let undone = |speaker: usize| pair.of == speaker || !pair.leaves.has(speaker);
                let undone = (0..self.ids.len()).filter(|speaker| undone(*speaker));
                undone.for_each(|speaker| against[speaker].push(pair));
            }
            let prevails = |removal: &Contender<'_>| {
                let own = removal.of.and_then(|of| pairs.get(&(removal.by, of)));
                own.filter(|own| own.ops.has(removal.op)).is_some_and(|own| {
                    let mut others = against[own.by].iter();
                    others.all(|other| self.stands_against(own, removal.op, other))
                })
            };
            let open = self.removals.iter().enumerate().filter(|(_, removal)| !removal.is_decided);
            let ready: Vec<usize> =
                open.filter(|(_, removal)| prevails(removal)).map(|(at, _)| at).collect();
            let Some(least) = ready.iter().map(|at| self.distance[self.removals[*at].by]).min()
            else {
                return;
            };
            for at in ready {
                if self.distance[self.removals[at].by] == least {
                    self.decide(at);
                }
            }
        }
    }

    fn decide(&mut self, at: usize) {
        let removal = &mut self.removals[at];
        removal.is_decided = true;
        if let Some(of) = removal.of {
            self.struck[of].entry(removal.by).or_default().add(&removal.attack);
        }
    }

    /// Whether the removal in op `op` of the pair `own` withstands the pair `other`.
    fn stands_against(&self, own: &Pair, op: usize, other: &Pair) -> bool {
        if (other.by, other.of) == (own.by, own.of) {
            return true;
        }
        let is_answer = (other.by, other.of) == (own.of, own.by);
        let is_struck = other.of == own.by && !is_answer && other.attack.has(op);
        if !is_struck && other.leaves.has(own.by) {
            return true;
        }
        let strikes = own.of == other.by && !is_answer && own.attack.has_all(&other.ops);
        let undoes = strikes || !own.leaves.has(other.by);
        let (ours, theirs) = (self.distance[own.by], self.distance[other.by]);
        undoes && (ours < theirs || (ours == theirs && strikes && !is_struck))
    }

    /// The admitted speakers, and who removes whom, by what is void now.
    fn standing(&self) -> Standing {
        let admitted = self.reach(None, None);
        let mut removers = vec![BTreeSet::new(); self.ids.len()];
        for removal in &self.removals {
            if let Some(of) = removal.of
                && admitted.has(removal.by)
                && self.is_live(removal)
            {
                removers[of].insert(removal.by);
            }
        }
        Standing { admitted, removers }
    }

    /// The undecided removals that may void ops: of speakers, by admitted authors, and not
    /// void themselves.
    fn open_pairs(&self, standing: &Standing) -> BTreeMap<(usize, usize), Pair> {
        let mut pairs: BTreeMap<(usize, usize), (Bits, Bits)> = BTreeMap::new();
        for removal in self.removals.iter().filter(|removal| !removal.is_decided) {
            let Some(of) = removal.of else { continue };
            if standing.admitted.has(removal.by)
                && self.is_live(removal)
                && !self.is_outranked(removal.by, of, standing)
            {
                let (attack, ops) = pairs.entry((removal.by, of)).or_default();
                attack.add(&removal.attack);
                ops.set(removal.op);
            }
        }
        let pairs = pairs.into_iter().map(|((by, of), (attack, ops))| {
            let leaves = self.reach(Some((of, &attack)), None);
            ((by, of), Pair { by, of, attack, ops, leaves })
        });
        pairs.filter(|(_, pair)| pair.leaves.has(pair.by)).collect()
    }

    /// Whether the removed device is closer to the founder than its only remover, and removes it in
    /// turn.
    fn is_outranked(&self, by: usize, of: usize, standing: &Standing) -> bool {
        self.distance[of] < self.distance[by]
            && standing.removers[by].contains(&of)
            && standing.removers[of].len() == 1
    }

    /// Whether no fence excludes the removal. The fence of its own target never does (M5).
    fn is_live(&self, removal: &Contender<'_>) -> bool {
        let mut struck = self.struck[removal.by].iter();
        !struck.any(|(by, ops)| Some(*by) != removal.of && ops.has(removal.op))
    }

    fn is_void(&self, by: usize, op: usize) -> bool {
        self.struck[by].values().any(|ops| ops.has(op))
    }

    /// The speakers that are admitted if the ops `struck` of a speaker were void too, and if what
    /// the speaker `without` added did not count.
    fn reach(&self, struck: Option<(usize, &Bits)>, without: Option<usize>) -> Bits {
        let mut reached = Bits::default();
        let mut queue: Vec<usize> = self.founders.clone();
        self.founders.iter().for_each(|founder| reached.set(*founder));
        while let Some(by) = queue.pop() {
            if without == Some(by) {
                continue;
            }
            for (op, device) in &self.adds[by] {
                let Some(number) = self.numbers.get(device) else { continue };
                let is_struck = struck.is_some_and(|(of, ops)| of == by && ops.has(*op));
                if !reached.has(*number) && !is_struck && !self.is_void(by, *op) {
                    reached.set(*number);
                    queue.push(*number);
                }
            }
        }
        reached
    }

    /// The devices that the founder reaches over adds that stand, each with its introducer. Breadth
    /// first, so chains are short and have no loops.
    fn stays(&self, standing: &Standing) -> BTreeMap<NodeId, NodeId> {
        let mut introducer: BTreeMap<NodeId, NodeId> =
            self.founders.iter().map(|founder| (self.ids[*founder], self.ids[*founder])).collect();
        let mut queue: VecDeque<usize> = self.founders.iter().copied().collect();
        while let Some(by) = queue.pop_front() {
            let kept = self.kept(by, standing);
            let mut added: Vec<NodeId> = Vec::new();
            for (op, device) in &self.adds[by] {
                let stays = kept.as_ref().is_none_or(|kept| kept.contains(device));
                if stays && !self.is_void(by, *op) {
                    added.push(*device);
                }
            }
            added.sort_unstable();
            for device in added {
                if introducer.contains_key(&device) {
                    continue;
                }
                introducer.insert(device, self.ids[by]);
                queue.extend(self.numbers.get(&device));
            }
        }
        introducer
    }

    /// The devices that the removers of a speaker keep; `None` when only an outranked device
    /// removed it. A remover that is a member only through the speaker counts only if there is no
    /// other remover.
    fn kept(&self, of: usize, standing: &Standing) -> Option<BTreeSet<NodeId>> {
        let is_heard = |removal: &&Contender<'_>| {
            removal.of == Some(of)
                && standing.admitted.has(removal.by)
                && self.is_live(removal)
                && (removal.is_decided || self.is_in_a_cycle(removal, of, standing))
        };
        if standing.removers[of].is_empty() {
            return None;
        }
        let removers: Vec<_> = self.removals.iter().filter(is_heard).collect();
        if removers.is_empty() {
            return None;
        }
        let mut keeps: BTreeMap<usize, BTreeSet<NodeId>> = BTreeMap::new();
        for removal in removers {
            let keep = keeps.entry(removal.by).or_insert_with(|| removal.what.keep.clone());
            keep.retain(|device| removal.what.keep.contains(device));
        }
        let independent = self.reach(None, Some(of));
        let all_depend = !keeps.keys().any(|by| independent.has(*by));
        let asked = keeps.into_iter().filter(|(by, _)| all_depend || independent.has(*by));
        Some(asked.flat_map(|(_, keep)| keep).collect())
    }

    /// Whether a removal that did not prevail could have voided something.
    fn is_in_a_cycle(&self, removal: &Contender<'_>, of: usize, standing: &Standing) -> bool {
        !self.is_outranked(removal.by, of, standing)
            && self.reach(Some((of, &removal.attack)), None).has(removal.by)
    }

    fn void_ops(&self) -> BTreeSet<OpHash> {
        let of = |speaker: usize| {
            let ops = self.ops[speaker].iter().enumerate();
            ops.filter(move |(op, _)| self.is_void(speaker, *op)).map(|(_, hash)| *hash)
        };
        (0..self.ids.len()).flat_map(of).collect()
    }
}

/// The numbers of the ops that a removal's fence excludes.
fn beyond(removal: &Removal, ops: &[OpHash]) -> Bits {
    let mut bits = Bits::default();
    if let Some(fence) = &removal.fence {
        let excluded = ops.iter().enumerate().filter(|(_, op)| !fence.contains(op));
        excluded.for_each(|(number, _)| bits.set(number));
    }
    bits
}

/// A set of small numbers.
#[derive(Debug, Clone, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn set(&mut self, number: usize) {
        let word = number / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(word, more)| *word |= more);
    }

    fn has_all(&self, other: &Self) -> bool {
        let word = |at: usize| self.0.get(at).copied().unwrap_or(0);
        other.0.iter().enumerate().all(|(at, bits)| bits & !word(at) == 0)
    }
}
