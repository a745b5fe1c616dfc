//! Finds the connection of a four-tuple, and prefetches what that takes from memory.

use tcpcopy_common::flow::Flow;

use crate::{
    engine::{Connection, Engine, Replay},
    store::{id::Id, table::FlowTable},
};

/// Connections that are prefetched at a time: few enough that the first is still in the processor's cache when the last
/// has come.
const BATCH: usize = 32;

impl Engine {
    /// Prefetches the connections of live clients whose segments follow soon. A hint, which saves
    /// [`handle_live`](Self::handle_live) the wait for memory, one connection after the other: with many connections
    /// that is most of its time. Best for some dozens at once.
    pub fn expect_live(&self, flows: impl IntoIterator<Item = Flow>) {
        self.fetch(&self.by_live, flows);
    }

    /// Prefetches the connections whose responses follow soon; the same for [`handle_report`](Self::handle_report).
    pub fn expect_responses(&self, flows: impl IntoIterator<Item = Flow>) {
        self.fetch(&self.by_target, flows);
    }

    /// Prefetches the slots of the table, all at once; then the connections that they name, all at once.
    fn fetch(&self, table: &FlowTable, flows: impl IntoIterator<Item = Flow>) {
        let mut flows = flows.into_iter();
        loop {
            let mut tags = [None; BATCH];
            for (tag, flow) in tags.iter_mut().zip(&mut flows) {
                table.prefetch(*tag.insert(table.tag(&flow)));
            }
            for tag in tags.iter().flatten() {
                // The first with that tag: nearly always the right one.
                if let Some(id) = table.find(*tag, |_| true) {
                    self.connections.prefetch(id);
                }
            }
            if tags[BATCH - 1].is_none() {
                return;
            }
        }
    }

    /// Returns the connection of a live client, unless it was superseded by another on the same four-tuple.
    pub(crate) fn id_of_live(&self, flow: &Flow) -> Option<Id> {
        let is = |id| self.connections.get(id).is_some_and(|connection| connection.live.flow() == *flow);
        self.by_live.find(self.by_live.tag(flow), is)
    }

    /// Returns the connection whose session has this four-tuple at its target.
    pub(crate) fn id_at_target(&self, flow: &Flow) -> Option<Id> {
        let is = |id| {
            let replay = self.connections.get(id).map(|Connection { replay, .. }| replay);
            matches!(replay, Some(Replay::Active(session)) if session.flow() == flow)
        };
        self.by_target.find(self.by_target.tag(flow), is)
    }
}
