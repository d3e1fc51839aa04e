//! Who holds what, and the missing assets: decides when to report our absent hashes to a peer, when
//! to pull those of the peer, when to confirm the peer as a holder, and when to request known
//! assets that are missing.
//!
//! C1  Our absent hashes are reported before the set that they belong to, so that no peer takes us
//!     for a holder of a hash that we only know.
//! C2  A peer is confirmed only while both sets are equal and its absent hashes are known here
//!     ([`crate::core::copies`] P1).
//! C3  Sets are compared only when the peer's absent hashes are known here, so that no asset is
//!     requested from a peer that does not hold it.
//! C4  Hashes of a difference that may not be wanted are judged first. Those that are not wanted
//!     become known here, and are not found again.

use super::talk::{Belief, OwnCopies};
use super::{Effect, Engine};
use crate::core::close::CloseCode;
use crate::core::copies::{AbsentPage, AbsentSet, MissingPlace};
use crate::core::ids::{Hash, NodeId};
use crate::core::limits::{ABSENT_RESTARTS_MAX, HASHES_PER_FRAME_MAX, SIZE_PULLS_MAX};
use crate::core::message::Message;
use crate::core::peers::ConnId;
use crate::core::session::Session;

/// The shortest pause between two confirmations of one peer.
const CONFIRM_MS: u64 = 1_000;

/// The shortest pause between telling absent hashes while something else is under way.
const TELL_MS: u64 = 5_000;

impl Engine {
    /// The same engine with what is known about copies.
    pub fn with_copies(mut self, own: OwnCopies, beliefs: Vec<(NodeId, Belief)>) -> Self {
        self.own = own;
        for (node_id, belief) in beliefs {
            if let Some(peer) = self.peers.get_mut(&node_id) {
                peer.belief = belief;
            }
        }
        self
    }

    /// How many assets are wanted here and not held, although they are known.
    pub fn missing(&self) -> u64 {
        self.own.missing
    }

    /// Whether this device does not want everything.
    pub fn chooses(&self) -> bool {
        self.own.chooses
    }

    /// New known hashes that are not held, and the state after them.
    pub(super) fn on_noted(
        &mut self,
        now_ms: u64,
        entries: &[(u64, Hash)],
        absent: AbsentSet,
        missing: u64,
    ) {
        for (seq, hash) in entries {
            if *seq > self.known.head_seq {
                self.known.sketch.insert(hash);
                self.known.head_seq = *seq;
            }
            if let Some(rebuild) = &mut self.rebuilding {
                rebuild.note(*seq, *hash);
            }
        }
        let has_more = missing > self.own.missing;
        (self.own.absent, self.own.missing) = (absent, missing);
        if has_more {
            let node_ids: Vec<NodeId> = self.peers.keys().copied().collect();
            node_ids.into_iter().for_each(|node_id| self.look_for_missing(now_ms, node_id));
        }
    }

    pub(super) fn on_absent(&mut self, conn: ConnId, theirs: AbsentSet) {
        let Some((node_id, _)) = self.session_of(conn) else { return };
        if let Some(peer) = self.peers.get_mut(&node_id) {
            peer.talk.theirs = Some(theirs);
        }
    }

    pub(super) fn on_absent_pull(
        &mut self,
        conn: ConnId,
        log: [u8; 16],
        after_turn: u64,
        out: &mut Vec<Effect>,
    ) {
        let Some((node_id, _)) = self.session_of(conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        if std::mem::replace(&mut peer.talk.is_serving, true) {
            self.close(conn, CloseCode::TooLarge, "two pulls of absent hashes at once", out);
            return;
        }
        out.push(Effect::ReadAbsent { conn, log, after_turn });
    }

    pub(super) fn on_absent_read(
        &mut self,
        conn: ConnId,
        page: Option<AbsentPage>,
        out: &mut Vec<Effect>,
    ) {
        let Some((node_id, _)) = self.session_of(conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        peer.talk.is_serving = false;
        match page {
            Some(page) => {
                // The page tells a state, which may be between what was told before and what is now.
                peer.talk.told = Some(page.now);
                out.push(Effect::Send { conn, message: Message::AbsentPage(Box::new(page)) });
            }
            None => self.close(conn, CloseCode::Internal, "the index cannot be read", out),
        }
    }

    pub(super) fn on_absent_page(&mut self, conn: ConnId, page: AbsentPage, out: &mut Vec<Effect>) {
        let Some((node_id, _)) = self.session_of(conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        if !peer.talk.is_pulling || peer.talk.is_taking {
            self.close(conn, CloseCode::Protocol, "absent hashes that were not pulled", out);
            return;
        }
        let from_turn = if page.is_start { 0 } else { peer.belief.absent.turn };
        if page.more && page.next <= from_turn {
            self.close(conn, CloseCode::Protocol, "a page of absent hashes without end", out);
            return;
        }
        (peer.talk.theirs, peer.talk.is_taking) = (Some(page.now), true);
        out.push(Effect::TakeAbsent { conn, peer: node_id, page: Box::new(page) });
    }

    pub(super) fn on_believed(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        node_id: NodeId,
        belief: Option<AbsentSet>,
        restarts: bool,
    ) {
        let is_current = self.session_of(conn).is_some();
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        if let Some(absent) = belief {
            peer.belief.absent = absent;
        }
        if restarts {
            peer.belief.is_confirmed = false;
        }
        if is_current {
            (peer.talk.is_pulling, peer.talk.is_taking) = (false, false);
            peer.talk.restarts += u32::from(restarts || belief.is_none());
            self.look_for_missing(now_ms, node_id);
        }
    }

    pub(super) fn on_missing(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        hashes: Vec<Hash>,
        next: Option<MissingPlace>,
    ) {
        let random = self.dice.next_u64();
        let Some((node_id, _)) = self.session_of(conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let pass = &mut peer.talk.missing;
        pass.is_asked = false;
        pass.found |= !hashes.is_empty();
        (pass.after, pass.at_ms) = match next {
            Some(next) => (next, Some(now_ms)),
            None => {
                let found = std::mem::take(&mut pass.found);
                let pause_ms = pass.backoff.next_ms(random);
                (MissingPlace::default(), found.then_some(now_ms + pause_ms))
            }
        };
        for hash in hashes {
            self.wants.lacking(now_ms, node_id, hash);
        }
    }

    pub(super) fn on_judged(&mut self, now_ms: u64, conn: ConnId, wanted: Vec<Hash>) {
        let Some((node_id, _)) = self.session_of(conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        peer.talk.judging = peer.talk.judging.saturating_sub(1);
        for hash in wanted {
            self.wants.lacking(now_ms, node_id, hash);
        }
    }

    /// The peer has hashes that are not known here.
    pub(super) fn on_difference(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        node_id: NodeId,
        hashes: Vec<Hash>,
        out: &mut Vec<Effect>,
    ) {
        if !self.own.chooses {
            for hash in hashes {
                self.wants.lacking(now_ms, node_id, hash);
            }
            return;
        }
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let hello = peer.session.as_ref().and_then(|session| session.hello.as_ref());
        if hello.is_some_and(|hello| hello.copies) {
            for chunk in hashes.chunks(HASHES_PER_FRAME_MAX) {
                peer.talk.to_judge.push_back(chunk.to_vec());
            }
            self.pull_sizes(node_id, out);
            return;
        }
        peer.talk.judging += 1;
        let hashes = hashes.into_iter().map(|hash| (hash, None)).collect();
        out.push(Effect::Judge { conn, hashes });
    }

    /// How many hashes of differences with the peer are not judged yet, at most.
    pub(super) fn judging(&self, node_id: NodeId) -> usize {
        let Some(peer) = self.peers.get(&node_id) else { return 0 };
        (peer.talk.to_judge.len() + peer.talk.judging) * HASHES_PER_FRAME_MAX
    }

    /// Asks the peer for the sizes of the next hashes of a difference, one frame at a time.
    fn pull_sizes(&mut self, node_id: NodeId, out: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let Some(session) = &peer.session else { return };
        let conn = session.conn;
        if !peer.talk.is_size_pulled
            && let Some(hashes) = peer.talk.to_judge.front()
        {
            peer.talk.is_size_pulled = true;
            out.push(Effect::Send { conn, message: Message::SizePull(hashes.clone()) });
        }
    }

    pub(super) fn on_sizes_told(
        &mut self,
        conn: ConnId,
        sizes: Vec<Option<u64>>,
        out: &mut Vec<Effect>,
    ) {
        let Some((node_id, _)) = self.session_of(conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let is_pulled = std::mem::take(&mut peer.talk.is_size_pulled);
        let hashes = peer.talk.to_judge.pop_front().filter(|_| is_pulled).unwrap_or_default();
        if hashes.is_empty() || hashes.len() != sizes.len() {
            self.close(conn, CloseCode::Protocol, "sizes that were not requested", out);
            return;
        }
        peer.talk.judging += 1;
        let hashes = hashes.into_iter().zip(sizes).collect();
        out.push(Effect::Judge { conn, hashes });
        self.pull_sizes(node_id, out);
    }

    pub(super) fn on_size_pull(&mut self, conn: ConnId, hashes: Vec<Hash>, out: &mut Vec<Effect>) {
        let Some((node_id, _)) = self.session_of(conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        peer.talk.sizing += 1;
        if peer.talk.sizing > SIZE_PULLS_MAX {
            self.close(conn, CloseCode::TooLarge, "too many requests for sizes at once", out);
            return;
        }
        out.push(Effect::ReadSizes { conn, hashes });
    }

    pub(super) fn on_sizes_read(
        &mut self,
        conn: ConnId,
        sizes: Vec<Option<u64>>,
        out: &mut Vec<Effect>,
    ) {
        let Some((node_id, _)) = self.session_of(conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        peer.talk.sizing = peer.talk.sizing.saturating_sub(1);
        out.push(Effect::Send { conn, message: Message::Sizes(sizes) });
    }

    /// Assets that the peer offered turned out not to be wanted.
    pub(super) fn on_unwanted(&mut self, conn: ConnId, hashes: &[Hash]) {
        let Some((node_id, _)) = self.session_of(conn) else { return };
        hashes.iter().for_each(|hash| self.wants.discard(node_id, hash));
    }

    /// The peer does not hold these hashes, or did not when it said so.
    pub(super) fn doubt(&mut self, node_id: NodeId, hashes: &[Hash], out: &mut Vec<Effect>) {
        let peer = self.peers.get_mut(&node_id).filter(|peer| peer.belief.is_confirmed);
        let Some(peer) = peer else { return };
        // It may have come by another way meanwhile, and been confirmed: then it is once more.
        peer.talk.confirmed = None;
        out.push(Effect::Doubt { peer: node_id, hashes: hashes.to_vec() });
    }

    /// Pulls what is not known of the peer's absent hashes, and asks for what is missing.
    pub(super) fn settle_copies(&mut self, now_ms: u64, node_id: NodeId, out: &mut Vec<Effect>) {
        let is_ready = self.store_up && self.store_paused_until_ms.is_none() && !self.behind;
        let room = self.wants.room(node_id);
        let missing = self.own.missing;
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let Some(session) = &peer.session else { return };
        if session.plain.is_some() || session.closing.is_some() {
            return;
        }
        let conn = session.conn;
        let (belief, talk) = (&peer.belief, &mut peer.talk);
        let is_known = talk.theirs.is_none_or(|theirs| theirs.digest == belief.absent.digest);
        if !is_known && !talk.is_pulling && talk.restarts < ABSENT_RESTARTS_MAX {
            talk.is_pulling = true;
            let AbsentSet { log, turn: after_turn, .. } = belief.absent;
            out.push(Effect::Send { conn, message: Message::AbsentPull { log, after_turn } });
        }
        let pass = &mut talk.missing;
        if missing == 0 || !belief.is_confirmed {
            pass.at_ms = None;
        }
        let is_due = pass.at_ms.is_some_and(|at_ms| now_ms >= at_ms);
        if is_ready && is_due && !pass.is_asked && room >= HASHES_PER_FRAME_MAX {
            pass.is_asked = true;
            out.push(Effect::AskMissing { conn, peer: node_id, after: pass.after });
        }
        if talk.told.is_some() && now_ms >= talk.tell_at_ms {
            // Whatever else is under way: nobody should count on what is gone here.
            self.tell_absent(now_ms, node_id, out);
        }
    }

    /// Whether the peer's absent hashes are known here, so that sets may be compared.
    pub(super) fn knows_absent(&self, node_id: NodeId, session: &Session) -> bool {
        let Some(peer) = self.peers.get(&node_id) else { return false };
        let tells = session.hello.as_ref().is_some_and(|hello| hello.copies);
        match peer.talk.theirs {
            Some(theirs) => theirs.digest == peer.belief.absent.digest,
            None => !tells && peer.belief.absent.digest.is_empty(),
        }
    }

    /// Whether comparing has to wait until the peer's absent hashes are pulled.
    pub(super) fn waits_for_absent(&self, node_id: NodeId) -> bool {
        self.peers.get(&node_id).is_some_and(|peer| peer.talk.is_pulling)
    }

    /// Tells the peer our absent hashes when they are not those that it was told.
    pub(super) fn tell_absent(&mut self, now_ms: u64, node_id: NodeId, out: &mut Vec<Effect>) {
        let absent = self.own.absent;
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let Some(session) = &peer.session else { return };
        if session.hello.as_ref().is_some_and(|hello| hello.copies)
            && peer.talk.told.is_none_or(|told| told.digest != absent.digest)
        {
            (peer.talk.told, peer.talk.tell_at_ms) = (Some(absent), now_ms + TELL_MS);
            let conn = session.conn;
            out.push(Effect::Send { conn, message: Message::Absent(absent) });
        }
    }

    /// The sets are equal: confirms the peer as a holder of all but its absent hashes.
    pub(super) fn confirm(
        &mut self,
        now_ms: u64,
        node_id: NodeId,
        fingerprint: &[u8; 32],
        out: &mut Vec<Effect>,
    ) {
        let to_seq = self.known.head_seq;
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let absent = peer.belief.absent;
        let now = Some((*fingerprint, absent));
        if peer.talk.confirmed == now || now_ms < peer.talk.confirm_at_ms {
            return;
        }
        (peer.talk.confirmed, peer.talk.confirm_at_ms) = (now, now_ms + CONFIRM_MS);
        out.push(Effect::Confirm { peer: node_id, to_seq, absent });
    }

    /// The peer was saved as a holder.
    pub(super) fn on_confirmed(&mut self, now_ms: u64, node_id: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node_id) {
            peer.belief.is_confirmed = true;
        }
        self.look_for_missing(now_ms, node_id);
    }

    /// When something of this module is due, if no input comes before.
    pub(super) fn copies_deadline(
        &self,
        node_id: NodeId,
        session: &Session,
        fingerprint: &[u8; 32],
    ) -> Option<u64> {
        let peer = self.peers.get(&node_id)?;
        let talk = &peer.talk;
        let is_equal = self.is_quiet(node_id, session)
            && self.has_equal_set(session, fingerprint)
            && self.knows_absent(node_id, session)
            && talk.confirmed != Some((*fingerprint, peer.belief.absent));
        let confirm = is_equal.then_some(talk.confirm_at_ms);
        let is_ready = self.store_up && self.store_paused_until_ms.is_none() && !self.behind;
        let may_ask = is_ready && !talk.missing.is_asked && self.own.missing > 0;
        let has_room = self.wants.room(node_id) >= HASHES_PER_FRAME_MAX;
        let missing = talk.missing.at_ms.filter(|_| may_ask && has_room);
        let is_news = talk.told.is_some_and(|told| told.digest != self.own.absent.digest);
        let tell = is_news.then_some(talk.tell_at_ms);
        [confirm, missing, tell].into_iter().flatten().min()
    }

    /// Starts a pass over the missing assets that the peer holds, unless one is under way.
    pub(super) fn look_for_missing(&mut self, now_ms: u64, node_id: NodeId) {
        if self.own.missing == 0 {
            return;
        }
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        if peer.session.is_none() || !peer.belief.is_confirmed {
            return;
        }
        let pass = &mut peer.talk.missing;
        pass.backoff.reset();
        if pass.at_ms.is_none_or(|at_ms| at_ms > now_ms) && !pass.is_asked {
            (pass.after, pass.at_ms) = (MissingPlace::default(), Some(now_ms));
        }
    }
}
