//! What a worker needs of its surroundings. The program implements these traits over a ring, sockets and control
//! channels; the simulation over virtual time. They are generic parameters, so that nothing on the way of a segment is
//! called through a pointer.

use std::{ops::AddAssign, time::Duration};

use tcpcopy_common::{flow::Flow, mark::Epoch, response::Response};

use super::snapshot::Snapshot;
use crate::{
    config::{Credentials, TargetId},
    engine::FuseEvent,
    record::{BadRecord, LiveRecord},
    segment::Transmit,
    time::Nanos,
};

/// A source of captured segments: a queue that others fill, and that loses segments when it is full.
pub trait Capture {
    /// Looks ahead: the records that [`drain`](Self::drain) would hand out next, oldest first, as far as they are
    /// complete.
    fn upcoming(&self) -> impl Iterator<Item = Upcoming>;

    /// Hands at most `budget` records to `f`, oldest first, frees their space, and returns how many there were. With a
    /// budget of 0 it frees only what is not a record (a ring's wake-ups), which must not keep the worker awake.
    fn drain(&mut self, budget: usize, f: impl FnMut(Result<LiveRecord<'_>, BadRecord>)) -> usize;

    /// Reports whether segments were lost since it was last asked. To be asked after [`upcoming`](Self::upcoming) and
    /// before those records are drained, so that the engines know of a loss before they see what was captured after it.
    fn has_lost(&mut self) -> bool;

    /// Returns how full the queue is.
    fn fill(&self) -> Fill;

    /// Asks to be woken by the next record. Returns false, and withdraws that, if there is something to drain already:
    /// then the worker must not sleep. Otherwise it sleeps for at most
    /// [`MAX_SLEEP_MS`](tcpcopy_common::wakeup::MAX_SLEEP_MS), and calls [`awake`](Self::awake) afterwards.
    fn prepare_sleep(&mut self) -> bool;

    /// Withdraws the wish to be woken.
    fn awake(&mut self);
}

/// A captured record that was not drained yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upcoming {
    /// The live connection's four-tuple, unless the record is too short to have one.
    pub flow: Option<Flow>,
    /// The record's length in octets, headers included: what it takes of a turn's budget.
    pub octets: usize,
}

/// How full a [`Capture`] is, in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Octets that wait to be drained.
    pub used: usize,
    /// Octets for which there is room in all.
    pub size: usize,
}

/// Where segments for the targets go. It never blocks.
pub trait Sink {
    /// What a sink counts.
    type Figures: Clone;

    /// Takes a segment over, at once or at the next [`flush`](Self::flush). What cannot be sent is discarded and
    /// counted: as on any network, it will be retransmitted.
    fn push(&mut self, transmit: &Transmit<'_>);

    /// Sends what was taken over, as far as there is room now.
    fn flush(&mut self);

    /// Returns how many packets wait for room; after a [`flush`](Self::flush) they should be flushed again soon.
    fn pending(&self) -> usize;

    /// Returns what has become of the packets so far.
    fn figures(&self) -> Self::Figures;
}

/// The channels on which the targets' responses are reported. A worker knows them by [`TargetId`].
pub trait Reports {
    /// A channel that was established.
    type Link;
    /// Why a channel is over.
    type Error;
    /// What a target counts of the sessions of one instance; totals since the instance began.
    type Figures: Copy + Default + AddAssign;

    /// How long an [`expedite`](Self::expedite) holds.
    const EXPEDITED: Duration;

    /// Takes over an established channel; an earlier one of the same target is closed.
    fn connect(&mut self, target: TargetId, link: Self::Link);

    /// Hands what has come on all channels to `handler`: a bounded amount from each. A channel that is over is closed,
    /// and reported after everything that came on it.
    fn receive(&mut self, handler: &mut impl HandleReports<Self::Figures, Self::Error>);

    /// Asks all targets to report each response at once for the next [`EXPEDITED`](Self::EXPEDITED), not in batches.
    fn expedite(&mut self);

    /// Tells all targets that the worker ends: each sends its last figures and closes its channel.
    fn leave(&mut self);
}

/// Receives what [`Reports`] have.
pub trait HandleReports<Figures, Error> {
    /// Handles responses of a target, in the order in which its programs saw them. The iterator is cloned to look
    /// ahead.
    fn handle_responses<'a>(&mut self, target: TargetId, responses: impl Iterator<Item = Response<'a>> + Clone);

    /// Handles the figures of the instance at the other end, which come every second.
    fn handle_figures(&mut self, target: TargetId, figures: Figures);

    /// Handles that another epoch has begun at the target.
    fn handle_epoch(&mut self, target: TargetId, epoch: Epoch);

    /// Handles the end of a channel.
    fn handle_channel_down(&mut self, target: TargetId, error: Error);
}

/// A monotonic clock: that of the kernel's programs, or the time of a recording.
pub trait Clock {
    /// Returns the present time.
    fn now(&self) -> Nanos;
}

/// The thread that runs a worker: its clock, its way of sleeping, and its connection with the main thread.
pub trait Host<C: Capture, S: Sink, R: Reports>: Clock {
    /// Returns the main thread's next order, if there is one; [`Order::Stop`] when the main thread is gone, because
    /// then nobody is left who could give it.
    fn next_order(&mut self) -> Option<Order<R::Link>>;

    /// Tells the main thread.
    fn notify(&mut self, notice: Notice<R::Error>);

    /// Shows the main thread what the worker has counted.
    fn publish(&mut self, snapshot: Snapshot<S::Figures, R::Figures>);

    /// Sleeps for `time`, whatever comes.
    fn nap(&mut self, time: Duration);

    /// Sleeps until an order or a report has come, `timeout` is over or, given a `capture`, a record has come. All of
    /// these are levels, not edges: what has come before the call, and was not taken, ends it at once.
    fn wait(&mut self, capture: Option<&C>, reports: &R, timeout: Duration);
}

/// What the main thread tells a worker.
#[derive(Debug)]
pub enum Order<Link> {
    /// A channel to a target was established.
    LinkUp(TargetId, Link, Credentials),
    /// Follow a fuse of another engine that has blown, or become whole again.
    Fuse(FuseEvent),
    /// Handle what was captured, reset the replayed sessions and end. Nothing is captured any more.
    Stop,
}

/// What a worker tells the main thread.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice<Error> {
    /// A channel is over.
    LinkDown {
        /// Which.
        target: TargetId,
        /// Why.
        error: Error,
    },
    /// A target acknowledges responses itself; told once for each target.
    Reflects {
        /// Which.
        target: TargetId,
    },
    /// What is sent to a target is seen there and answered, or is not: told when that changes, and once at the start.
    Fuse {
        /// Which copy has found that.
        copy: usize,
        /// What it has found.
        event: FuseEvent,
    },
    /// Clients of a service complete handshakes without a SYN-ACK of it that was captured: told once for each rule of
    /// an engine.
    AnswersUnseen {
        /// Where the service's connections are replayed to.
        target: std::net::SocketAddr,
    },
    /// Connections of a service that were to be joined in the middle were ended at once, and none is joined any more:
    /// told once for each rule of an engine.
    Unjoinable {
        /// Where the service's connections are replayed to.
        target: std::net::SocketAddr,
    },
}
