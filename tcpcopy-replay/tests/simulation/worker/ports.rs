//! The worker's ports, as views of one [`World`].

use std::{cell::RefCell, rc::Rc, time::Duration};

use tcpcopy_common::response::Response;
use tcpcopy_replay::{
    BadRecord, Checksums, LiveRecord, Nanos, TargetId, Transmit,
    worker::{self, Capture, Clock, Fill, HandleReports, Notice, Order, Reports, Sink, Upcoming},
};

use super::{
    site::{Figures, Item, Link},
    world::{Record, World},
};

type Shared<'a> = Rc<RefCell<World<'a>>>;

/// Where captured segments come from.
pub struct Ring<'a>(pub Shared<'a>);
/// Where segments go.
pub struct Exit<'a>(pub Shared<'a>);
/// Where reports come from.
pub struct Channels<'a>(pub Shared<'a>);
/// The thread that runs the worker.
pub struct Thread<'a>(pub Shared<'a>);

impl Capture for Ring<'_> {
    fn upcoming(&self) -> impl Iterator<Item = Upcoming> {
        /// More than the worker looks ahead.
        const MOST: usize = 64;
        let world = self.0.borrow();
        let upcoming =
            world.ring.upcoming().map(|record| Upcoming { flow: Some(record.segment.flow), octets: record.octets() });
        upcoming.take(MOST).collect::<Vec<_>>().into_iter()
    }

    fn drain(&mut self, budget: usize, mut f: impl FnMut(Result<LiveRecord<'_>, BadRecord>)) -> usize {
        let mut records = 0;
        loop {
            // Not borrowed while the worker handles it.
            let next = self.0.borrow_mut().drain(records < budget);
            let Some(Record { segment, bad, .. }) = next else { return records };
            records += 1;
            if bad {
                f(LiveRecord::parse(&[], Checksums::Complete));
            } else {
                f(Ok(segment.record(segment.rule % 2)));
            }
        }
    }

    fn has_lost(&mut self) -> bool {
        self.0.borrow_mut().has_lost()
    }

    fn fill(&self) -> Fill {
        self.0.borrow().ring.fill()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.0.borrow_mut().ring.prepare_sleep()
    }

    fn awake(&mut self) {
        self.0.borrow_mut().ring.need_wakeup = false;
    }
}

impl Sink for Exit<'_> {
    /// Packets that have left.
    type Figures = u64;

    fn push(&mut self, transmit: &Transmit<'_>) {
        self.0.borrow_mut().push(transmit);
    }

    fn flush(&mut self) {
        self.0.borrow_mut().flush();
    }

    fn pending(&self) -> usize {
        self.0.borrow().waiting.len()
    }

    fn figures(&self) -> u64 {
        self.0.borrow().departed
    }
}

impl Reports for Channels<'_> {
    type Link = Link;
    type Error = &'static str;
    type Figures = Figures;

    const EXPEDITED: Duration = Duration::from_millis(50);

    fn connect(&mut self, target: TargetId, link: Link) {
        self.0.borrow_mut().sites[usize::from(target.0)].connect(link);
    }

    fn receive(&mut self, handler: &mut impl HandleReports<Figures, &'static str>) {
        self.0.borrow_mut().begin_receiving();
        let sites = self.0.borrow().sites.len();
        for index in 0..sites {
            let target = TargetId(index as u16);
            let items = self.0.borrow_mut().receive(index);
            let mut batch = Vec::new();
            for item in items {
                if let Item::Response(response) = item {
                    batch.push(Response::from(response.report));
                    continue;
                }
                handler.handle_responses(target, std::mem::take(&mut batch).into_iter());
                match item {
                    Item::Response(_) => {}
                    Item::Figures(_, figures) => handler.handle_figures(target, figures),
                    Item::Down(why) => handler.handle_channel_down(target, why),
                }
            }
            handler.handle_responses(target, batch.into_iter());
        }
    }

    fn expedite(&mut self) {}

    fn leave(&mut self) {
        self.0.borrow_mut().leave();
    }
}

impl Clock for Thread<'_> {
    fn now(&self) -> Nanos {
        self.0.borrow_mut().begin_turn()
    }
}

impl<'a> worker::Host<Ring<'a>, Exit<'a>, Channels<'a>> for Thread<'a> {
    fn next_order(&mut self) -> Option<Order<Link>> {
        self.0.borrow_mut().next_order()
    }

    fn notify(&mut self, notice: Notice<&'static str>) {
        self.0.borrow_mut().notice(notice);
    }

    fn publish(&mut self, snapshot: worker::Snapshot<u64, Figures>) {
        self.0.borrow_mut().publish(snapshot);
    }

    fn nap(&mut self, time: Duration) {
        self.0.borrow_mut().nap(time);
    }

    fn wait(&mut self, capture: Option<&Ring<'a>>, _: &Channels<'a>, timeout: Duration) {
        self.0.borrow_mut().wait(capture.is_some(), timeout);
    }
}
