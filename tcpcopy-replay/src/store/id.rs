//! The name of a connection within its engine.

/// Names a connection for as long as it lives: its index in the [`Slab`](super::slab::Slab).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(u32);

impl Id {
    pub(crate) const fn get(self) -> u32 {
        self.0
    }

    pub(crate) const fn new(index: u32) -> Self {
        Self(index)
    }
}
