//! Where a worker's reports come from: the control channels to the intercepts.

use std::time::Duration;

use tcpcopy_replay::{
    TargetId,
    worker::{HandleReports, Reports},
};

use crate::{
    control::{Frame, HURRY, Link, LinkError, Stats},
    poll::Interest,
};

/// The control channels of one worker, by [`TargetId`]; `None` while one is down.
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Option<Box<Link>>>);

impl Links {
    /// Returns what ends a sleep: input on any channel, or room for output that waits.
    pub(super) fn interests(&self) -> impl Iterator<Item = Interest<'_>> {
        self.0.iter().flatten().map(|link| link.interest())
    }

    /// Sends a frame on all channels. An error is met again when the channel is read, and so is a channel whose peer
    /// reads too slowly to be sent more.
    fn broadcast(&mut self, frame: &Frame<'_>) {
        for link in self.0.iter_mut().flatten() {
            let _ = link.send(frame).and_then(|_| link.flush());
        }
    }
}

impl Reports for Links {
    type Link = Box<Link>;
    type Error = LinkError;
    type Figures = Stats;

    const EXPEDITED: Duration = HURRY;

    fn connect(&mut self, target: TargetId, link: Self::Link) {
        let index = usize::from(target.0);
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some(link);
    }

    fn receive(&mut self, handler: &mut impl HandleReports<Stats, LinkError>) {
        for (index, slot) in self.0.iter_mut().enumerate() {
            let Some(link) = slot else { continue };
            let target = TargetId(index as u16);
            let outcome = link.receive(|frame| match frame {
                Frame::Responses(responses) => handler.handle_responses(target, responses.iter()),
                Frame::Stats(stats) => handler.handle_figures(target, stats),
                Frame::Epoch(epoch) => handler.handle_epoch(target, epoch),
                // The link reports the end.
                Frame::Bye => {}
                other => log::debug!("unexpected frame from intercept: {other:?}"),
            });
            if let Err(error) = outcome.and_then(|_| link.flush()) {
                *slot = None;
                handler.handle_channel_down(target, error);
            }
        }
    }

    fn expedite(&mut self) {
        self.broadcast(&Frame::Hurry);
    }

    fn leave(&mut self) {
        self.broadcast(&Frame::Bye);
    }
}
