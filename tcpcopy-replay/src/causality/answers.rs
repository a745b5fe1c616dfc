//! The account of answers: those of the target compared with those of the live server, in octets.
//!
//! Where an answer ends is a guess (see [`super::gate`]). When the guess was wrong, or a request was let through before
//! the answer to the one before, the rest of one answer passes for the next; if the target then closes, a request stays
//! without an answer and nothing else tells. How much the live server had answered does: the live client's
//! acknowledgements tell. A target may answer differently, so this decides nothing but what is counted as unclear
//! (rule S6).

/// The account of one target connection. All figures are octets, saturating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// How much less than the live server the target had sent when the newest request was let through.
    behind: u32,
    /// The live server's answer to the request before the newest.
    last: u32,
    /// What the target has sent since the newest request was let through.
    received: u32,
    /// Requests before the newest that were let through before the answer to the one before had ended. From the first
    /// of them on, every octet counts.
    early: u8,
    /// Ends of writes in the newest request: several writes may be several requests.
    writes: u8,
    /// Whether the newest request was let through early.
    newest_early: bool,
    /// Whether several requests may have been under way at once.
    concurrent: bool,
}

impl Answers {
    /// Records payload of the target.
    pub(crate) const fn record_response(&mut self, octets: u32) {
        self.received = self.received.saturating_add(octets);
    }

    /// Records that the target went on with an answer after the request that was to wait for it had been let through.
    pub(crate) const fn record_continuation(&mut self) {
        self.newest_early = true;
    }

    /// Whether the target's answer to the newest request is about as long as the live server's, of so many octets: by
    /// chance it seldom is.
    pub(crate) const fn is_alike(&self, live: u32) -> bool {
        self.received.abs_diff(live) <= live / 16
    }

    /// Records that a write of the live client ends with the segment that is sent.
    pub(crate) const fn record_write(&mut self) {
        self.writes = self.writes.saturating_add(1);
        self.concurrent |= self.writes > 1;
    }

    /// Records that the live client speaks a protocol in which several requests may be under way.
    pub(crate) const fn record_concurrency(&mut self) {
        self.concurrent = true;
    }

    /// Records that a request is let through which the live client sent after it had read `live` octets. `early`: not
    /// because the target has answered.
    pub(crate) fn record_request(&mut self, live: u32, early: bool) {
        let exact = self.early() > 0 || self.behind >= self.last / 2;
        // Less than half an answer is how versions of a server differ, and would add up.
        let carried = if exact { self.behind } else { 0 };
        let behind = carried.saturating_add(live).saturating_sub(self.received);
        let concurrent = self.concurrent;
        *self =
            Self { behind, last: live, received: 0, early: self.early(), writes: 0, newest_early: early, concurrent };
    }

    /// Whether several requests, perhaps, were under way at once: the live client has written more than once without
    /// having read anything in between, or speaks a protocol that is made for it.
    pub(crate) const fn is_concurrent(&self) -> bool {
        self.concurrent
    }

    const fn early(&self) -> u8 {
        self.early.saturating_add(self.newest_early as u8)
    }

    /// Returns how many requests may have stayed without an answer, if the target sends no more. `answered`: it has
    /// sent payload since the newest one, which is not among them otherwise; `live`: how much the live server has
    /// answered to that.
    pub(crate) fn unclear(&self, answered: bool, live: u32) -> u64 {
        let early = u64::from(self.early());
        if !answered {
            // An answer is missing to the requests before it.
            return if self.behind > 0 && self.behind >= self.last { early.max(1) } else { 0 };
        }
        if let Some(missing) = self.behind.checked_sub(self.received) {
            // To the newest, and perhaps to the one before it.
            return early.max(1 + u64::from(missing > 0 && missing >= self.last));
        }
        // Pipelined requests, or one in several writes.
        let short = u64::from(self.received) * 4 < u64::from(live) * 3;
        u64::from(self.writes > 1 && short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An account after these steps: the live server's answer, what the target sends after the request that follows it,
    /// and whether that request was let through early.
    fn account(steps: &[(u32, u32, bool)]) -> Answers {
        let mut answers = Answers::default();
        for &(live, said, early) in steps {
            answers.record_request(live, early);
            answers.record_write();
            answers.record_response(said);
        }
        answers
    }

    #[test]
    fn equal_answers_owe_nothing() {
        let answers = account(&[(0, 100, false), (100, 300, false), (300, 50, false)]);
        assert_eq!((answers.unclear(true, 50), answers.unclear(false, 50)), (0, 0));
        assert_eq!(Answers::default().unclear(false, 50), 0, "nothing was asked");
    }

    #[test]
    fn a_late_answer_is_not_one_to_the_request_let_through_before_it() {
        assert_eq!(account(&[(0, 0, false), (100, 100, true)]).unclear(true, 100), 1);
        assert_eq!(account(&[(0, 0, false), (100, 0, true), (100, 100, true)]).unclear(true, 100), 2);
        assert_eq!(account(&[(0, 0, false), (100, 200, true)]).unclear(true, 100), 0);
        // The late answer has let another request through, which is known to be unanswered.
        assert_eq!(account(&[(0, 0, false), (100, 100, true), (100, 0, false)]).unclear(false, 0), 1);
        assert_eq!(account(&[(0, 0, false), (100, 200, true), (100, 0, false)]).unclear(false, 0), 0);
    }

    #[test]
    fn the_rest_of_an_answer_is_not_the_next() {
        assert_eq!(account(&[(0, 60, false), (100, 40, false)]).unclear(true, 100), 1);
        assert_eq!(account(&[(0, 60, false), (100, 41, false)]).unclear(true, 100), 0);
        assert_eq!(account(&[(0, 60, false), (100, 0, false)]).unclear(false, 0), 0);
    }

    #[test]
    fn part_of_an_answer_that_is_missing_is_of_one_answer() {
        assert_eq!(account(&[(0, 60, false), (100, 20, false)]).unclear(true, 100), 1);
        // Without an answer between the two last requests none of them lacks another.
        assert_eq!(account(&[(0, 0, false), (100, 0, false), (0, 100, false)]).unclear(true, 100), 1);
    }

    #[test]
    fn two_answers_that_are_missing_are_two() {
        assert_eq!(account(&[(0, 10, false), (100, 10, false), (100, 10, false)]).unclear(true, 100), 2);
    }

    #[test]
    fn slightly_shorter_answers_do_not_add_up() {
        let steps: Vec<_> = (0..100).map(|n| (if n == 0 { 0 } else { 100 }, 95, false)).collect();
        assert_eq!(account(&steps).unclear(true, 100), 0);
    }

    #[test]
    fn half_an_answer_behind_is_remembered() {
        // Two answers were cut in two: the second half of each passed for the next.
        assert_eq!(account(&[(0, 50, false), (100, 50, false), (100, 100, false)]).unclear(true, 100), 1);
        assert_eq!(account(&[(0, 51, false), (100, 49, false), (100, 100, false)]).unclear(true, 100), 0);
    }

    #[test]
    fn once_an_answer_was_cut_in_two_every_octet_counts() {
        let mut answers = account(&[(0, 90, false)]);
        answers.record_request(100, false);
        answers.record_continuation();
        answers.record_response(10);
        // The rest has let the third request through, and the answer to the second passes for the third's.
        answers.record_request(100, false);
        answers.record_response(100);
        assert_eq!(
            (
                answers.unclear(true, 100),
                account(&[(0, 90, false), (100, 10, false), (100, 100, false)]).unclear(true, 100)
            ),
            (1, 0)
        );
    }

    #[test]
    fn a_pipeline_answered_in_part_is_unclear() {
        let mut answers = account(&[(0, 100, false)]);
        assert_eq!(answers.unclear(true, 200), 0, "one write, and another server");
        answers.record_write();
        assert_eq!((answers.unclear(true, 200), answers.unclear(true, 134), answers.unclear(true, 133)), (1, 1, 0));
        answers.record_response(50);
        assert_eq!((answers.unclear(true, 201), answers.unclear(true, 200)), (1, 0), "three quarters");
    }

    #[test]
    fn nothing_overflows() {
        let mut answers = account(&[(u32::MAX, u32::MAX, true); 300]);
        (0..300).for_each(|_| answers.record_write());
        assert_eq!(answers.unclear(true, u32::MAX), 0);
    }
}
