//! Frames that no stack has sent: of every [shape](shapes) that the programs tell apart, [changed](mutate), and
//! [read](Reading) a second time.

mod mutate;
mod read;
mod shapes;

pub use mutate::{mutate, repair, sealed_bits};
pub use read::{Ends, Reading, read};
pub use shapes::{INNER, OUTER, icmp_errors, segments, syns};
