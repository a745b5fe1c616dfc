//! Raw-packet injection of replayed segments.
