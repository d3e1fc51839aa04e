//! Counting the copies of all assets.

use std::collections::BTreeSet;

use rusqlite::Rows;

use super::Index;
use super::peers::holder;
use crate::core::copies::{Census, CopiesGoal};
use crate::core::ids::NodeId;
use crate::db::{self, row_u64};

impl Index {
    /// Counts the assets by the number of their copies. `sites` has the members of the group with the
    /// number of the site of each; `own_site` is that of this device. Members in `awaited` are about to
    /// be confirmed as holders: what is newer than their last confirmation is not known of them yet.
    /// Reads the whole index in order, a row at a time.
    pub fn census(
        &self,
        goal: CopiesGoal,
        sites: &[(NodeId, usize)],
        own_site: usize,
        awaited: &BTreeSet<NodeId>,
    ) -> db::Result<Census> {
        self.read(|connection| {
            let mut peers = Vec::new();
            // Up to this number every awaited member is confirmed.
            let mut confirmed_to = u64::MAX;
            for (node_id, site) in sites {
                let holder = holder(connection, node_id)?;
                if awaited.contains(node_id) {
                    let holds_to = holder.as_ref().map_or(0, |holder| holder.holds_to);
                    confirmed_to = confirmed_to.min(holds_to);
                }
                peers.extend(holder.map(|holder| (holder.holds_to, holder.num, *site)));
            }
            let mut queries = Vec::new();
            for (_, num, _) in &peers {
                let mut of_peer = Vec::new();
                for table in ["lacks", "doubts"] {
                    let sql = format!("SELECT seq FROM {table} WHERE holder = {num} ORDER BY seq");
                    of_peer.push(connection.prepare(&sql)?);
                }
                queries.push(of_peer);
            }
            let mut cursors = Vec::new();
            for of_peer in &mut queries {
                let mut lists = Vec::new();
                for query in of_peer {
                    let mut rows = query.query([])?;
                    let first = next_seq(&mut rows)?;
                    lists.push((rows, first));
                }
                cursors.push(lists);
            }
            let mut census = Census::default();
            let mut query = connection.prepare("SELECT seq, state FROM known ORDER BY seq")?;
            let mut rows = query.query([])?;
            let mut on_sites = BTreeSet::new();
            while let Some(row) = rows.next()? {
                let (seq, state): (u64, i64) = (row_u64(row, 0)?, row.get(1)?);
                on_sites.clear();
                let mut copies = 0;
                if state == 0 {
                    copies += 1;
                    on_sites.insert(own_site);
                }
                for ((holds_to, _, site), lists) in peers.iter().zip(&mut cursors) {
                    let mut lacks = seq > *holds_to;
                    for (list, at) in lists {
                        while at.is_some_and(|at| at < seq) {
                            *at = next_seq(list)?;
                        }
                        lacks |= *at == Some(seq);
                    }
                    if !lacks {
                        copies += 1;
                        on_sites.insert(*site);
                    }
                }
                census.count(goal, copies, &on_sites, seq > confirmed_to);
            }
            Ok(census)
        })
    }
}

fn next_seq(rows: &mut Rows<'_>) -> rusqlite::Result<Option<u64>> {
    rows.next()?.map(|row| row_u64(row, 0)).transpose()
}
