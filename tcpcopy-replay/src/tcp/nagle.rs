//! Whether the servers of a rule hold the rest of an answer back until its beginning is acknowledged: with Nagle's
//! algorithm (RFC 9293, section 3.7.4) a header that was written by itself goes at once, and what follows it waits. To
//! delay that acknowledgement until the next request would be wrong: the answer is not complete, as much as it looks
//! so.
//!
//! From what is reported it cannot be told from an answer that ends there. So some answers are acknowledged at once, to
//! see whether more comes because of that; if it happens often, all are.

/// What the answers of a rule's servers have shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nagle {
    answers: u8,
    /// Answers that were acknowledged at once, and how many of them went on then; both are halved now and then.
    tried: u8,
    went_on: u8,
}

impl Nagle {
    /// The first answers are all tried.
    const FIRST: u8 = 16;
    /// Of the later ones, 1 in this many is tried.
    const EVERY: u8 = 32;
    /// Threshold: more than 1 in 8 continuations is not chance.
    const CHANCE: u8 = 8;

    /// Servers that have been seen not to wait.
    #[cfg(test)]
    pub(crate) fn learnt() -> Self {
        Self { tried: Self::FIRST, ..Self::default() }
    }

    /// Decides whether an answer, which came just now, is to be acknowledged at once.
    pub(crate) fn is_to_be_tried(&mut self) -> bool {
        self.answers = self.answers.wrapping_add(1);
        let holds = self.went_on > self.tried / Self::CHANCE;
        if self.tried >= Self::FIRST && !holds && !self.answers.is_multiple_of(Self::EVERY) {
            return false;
        }
        if self.tried == u8::MAX {
            self.tried /= 2;
            self.went_on /= 2;
        }
        self.tried += 1;
        true
    }

    /// Records that an answer went on after it had been acknowledged; `because`: the time fits.
    pub(crate) const fn judge(&mut self, because: bool) {
        if because {
            self.went_on = self.went_on.saturating_add(1);
        }
    }
}
