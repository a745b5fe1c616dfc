//! Where a worker's segments come from: the ring that the capture programs fill.

use tcpcopy_replay::{
    BadRecord, LiveSegment,
    worker::{Capture, Fill, Upcoming},
};

use crate::bpf::RingReader;

impl Capture for RingReader {
    fn upcoming(&self) -> impl Iterator<Item = Upcoming> {
        Self::upcoming(self).map(|record| Upcoming { flow: LiveSegment::flow_of(record), octets: record.len() })
    }

    fn drain(&mut self, budget: usize, mut f: impl FnMut(Result<LiveSegment<'_>, BadRecord>)) -> usize {
        Self::drain(self, budget, |record| f(LiveSegment::parse(record).inspect_err(|e| log::debug!("{e}"))))
    }

    fn has_lost(&mut self) -> bool {
        Self::has_lost(self)
    }

    fn fill(&self) -> Fill {
        Fill { used: self.used(), size: self.size() }
    }

    fn prepare_sleep(&mut self) -> bool {
        Self::prepare_sleep(self)
    }

    fn awake(&mut self) {
        Self::awake(self);
    }
}
