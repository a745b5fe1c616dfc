//! Tests of the whole engine in virtual time: a scripted live client, a lossy path, a model of the target's TCP.
//!
//! After every step the statistics must balance, and agree with what the sessions really hold.

mod chaos;
mod close;
mod gating;
mod harness;
mod join;
mod leftovers;
mod limits;
mod loss;
mod sessions;
mod target;
