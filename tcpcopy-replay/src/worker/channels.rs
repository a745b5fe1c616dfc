//! The control channels as a worker sees them: which are up, and what the targets have counted.

use std::{mem, ops::AddAssign};

use tcpcopy_common::{mark::Epoch, response::Response};

use super::{
    ports::{HandleReports, Notice},
    replica::{LOOK_AHEAD, Replica},
    snapshot::Counts,
};
use crate::{Credentials, Nanos, Report, TargetId};

/// One channel: a target, and the replica whose sessions it is for.
#[derive(Debug)]
pub(super) struct Channel<Figures> {
    /// An index into the worker's replicas.
    pub(super) replica: usize,
    pub(super) is_up: bool,
    instance: Option<u32>,
    /// The last figures of the current instance.
    current: Figures,
    /// The sum of the last figures of all instances before it.
    earlier: Figures,
    /// Whether the target has acknowledged a response itself.
    reflects: bool,
}

impl<Figures: Copy + Default + AddAssign> Channel<Figures> {
    /// A channel that is not up yet.
    pub(super) fn new(replica: usize) -> Self {
        let (current, earlier) = (Figures::default(), Figures::default());
        Self { replica, is_up: false, instance: None, current, earlier, reflects: false }
    }

    /// Notes that the channel is up. Another instance than before counts from zero, so what the former one counted is
    /// kept.
    pub(super) fn establish(&mut self, credentials: &Credentials) {
        if self.instance != Some(credentials.instance) {
            self.earlier += mem::take(&mut self.current);
            self.instance = Some(credentials.instance);
        }
        self.is_up = true;
    }

    /// Returns what the target has counted of all instances.
    pub(super) fn figures(&self) -> Figures {
        let mut sum = self.earlier;
        sum += self.current;
        sum
    }
}

/// Hands reports to the engines, as of one turn.
pub(super) struct Reception<'a, Figures, Error> {
    pub(super) now: Nanos,
    pub(super) replicas: &'a mut [Replica],
    pub(super) channels: &'a mut [Channel<Figures>],
    pub(super) notices: &'a mut Vec<Notice<Error>>,
    pub(super) own: &'a mut Counts,
}

impl<Figures, Error> HandleReports<Figures, Error> for Reception<'_, Figures, Error> {
    fn handle_responses<'a>(&mut self, target: TargetId, responses: impl Iterator<Item = Response<'a>> + Clone) {
        let channel = &mut self.channels[usize::from(target.0)];
        let engine = &mut self.replicas[channel.replica].engine;
        let mut reflected = false;
        let (mut ahead, mut responses) = (responses.clone(), responses.peekable());
        while responses.peek().is_some() {
            engine.expect_responses(ahead.by_ref().take(LOOK_AHEAD).map(|response| response.header().flow));
            for response in responses.by_ref().take(LOOK_AHEAD) {
                let Ok(report) = Report::parse(&response) else {
                    self.own.unknown_reports += 1;
                    continue;
                };
                reflected |= report.is_reflected();
                engine.handle_report(self.now, target, &report);
            }
        }
        if reflected && !mem::replace(&mut channel.reflects, true) {
            self.notices.push(Notice::Reflects { target });
        }
    }

    fn handle_figures(&mut self, target: TargetId, figures: Figures) {
        let channel = &mut self.channels[usize::from(target.0)];
        channel.current = figures;
        self.replicas[channel.replica].engine.handle_heard(self.now, target);
    }

    fn handle_epoch(&mut self, target: TargetId, epoch: Epoch) {
        let channel = &self.channels[usize::from(target.0)];
        self.replicas[channel.replica].engine.handle_epoch(target, epoch);
    }

    fn handle_channel_down(&mut self, target: TargetId, error: Error) {
        let channel = &mut self.channels[usize::from(target.0)];
        channel.is_up = false;
        self.replicas[channel.replica].engine.handle_channel_down(self.now, target);
        self.notices.push(Notice::LinkDown { target, error });
    }
}
