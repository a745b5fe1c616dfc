//! The gradual start (`-g`): the share of connections that is copied grows until it is that of `-r`.
//!
//! The kernel admits a connection when the share has passed what the connection has drawn, so one that is admitted
//! stays so. One that was not admitted at its SYN is copied from some segment on; the engine refuses it, because it
//! joins no connection whose SYN it has not seen ([`Config::join_open`](tcpcopy_replay::Config::join_open)).

use std::{future::pending, time::Duration};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::settings::Selection;
use crate::bpf::Share;

/// How often the share grows: often enough that the steps of a ramp of a few seconds do not show.
const STEP: Duration = Duration::from_millis(50);

/// A share of connections that grows with time, or that does not.
pub(super) struct Ramp {
    began: Instant,
    duration: Duration,
    full: Share,
    now: Share,
    steps: Interval,
}

impl Ramp {
    /// Begins now. Needs a tokio runtime.
    pub(super) fn new(selection: &Selection) -> Self {
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            began: Instant::now(),
            duration: selection.ramp.unwrap_or_default(),
            full: Share::percent(selection.percentage),
            now: initial_share(selection),
            steps,
        }
    }

    /// The next share; never when it does not grow any more. May be cancelled.
    pub(super) async fn next(&mut self) -> Share {
        if self.is_over() {
            return pending().await;
        }
        self.steps.tick().await;
        self.now = self.full.grown(self.began.elapsed(), self.duration);
        self.now
    }

    /// Whether the share is the full one.
    pub(super) fn is_over(&self) -> bool {
        self.now == self.full
    }
}

/// The share to begin with.
pub(super) fn initial_share(selection: &Selection) -> Share {
    if selection.ramp.is_some() { Share::NONE } else { Share::percent(selection.percentage) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(ramp: Option<Duration>) -> Selection {
        Selection { percentage: 40, ramp, clients: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ramp_only_grows_and_ends_at_the_full_share_in_its_time() {
        let began = Instant::now();
        let mut ramp = Ramp::new(&selection(Some(Duration::from_millis(200))));
        let mut shares = vec![initial_share(&selection(ramp.duration.into()))];
        while !ramp.is_over() {
            shares.push(ramp.next().await);
        }
        // At 0, 50, 100, 150 and 200 ms.
        let expected: Vec<Share> = [0, 0, 10, 20, 30, 40].map(Share::percent).to_vec();
        assert_eq!((shares, began.elapsed().as_millis()), (expected, 200));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_ramp_the_share_is_full_at_once_and_stays() {
        let mut ramp = Ramp::new(&selection(None));
        assert_eq!(initial_share(&selection(None)), Share::percent(40));
        assert!(ramp.is_over() && tokio::time::timeout(STEP * 2, ramp.next()).await.is_err());
    }
}
