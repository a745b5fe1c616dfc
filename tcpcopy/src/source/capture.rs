//! Where a worker's segments come from: the ring that the capture programs fill.

use tcpcopy_replay::{
    BadRecord, Checksums, LiveRecord,
    worker::{Capture, Fill, Upcoming},
};

use crate::bpf::RingReader;

/// A worker's ring, and what is known of the packets in it.
pub(super) struct Ring {
    pub(super) reader: RingReader,
    pub(super) checksums: Checksums,
}

impl Capture for Ring {
    fn upcoming(&self) -> impl Iterator<Item = Upcoming> {
        self.reader.upcoming().map(|record| Upcoming { flow: LiveRecord::flow_of(record), octets: record.len() })
    }

    fn drain(&mut self, budget: usize, mut f: impl FnMut(Result<LiveRecord<'_>, BadRecord>)) -> usize {
        let checksums = self.checksums;
        self.reader.drain(budget, |record| f(LiveRecord::parse(record, checksums).inspect_err(|e| log::debug!("{e}"))))
    }

    fn has_lost(&mut self) -> bool {
        self.reader.has_lost()
    }

    fn fill(&self) -> Fill {
        Fill { used: self.reader.used(), size: self.reader.size() }
    }

    fn prepare_sleep(&mut self) -> bool {
        self.reader.prepare_sleep()
    }

    fn awake(&mut self) {
        self.reader.awake();
    }
}
