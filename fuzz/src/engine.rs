//! The replay engine between live clients and targets that do whatever they are told, honest or not, in any order.
//!
//! An input is settings, then steps of six octets each. After every step all that the engine wants to send is judged:
//!
//! - nothing goes to a target whose channel is down, or to a session that its programs do not know (S3);
//! - every octet is one that the live client sent, was captured, and is in its place (S5);
//! - the statistics balance, and agree with what was handed in (S6);
//! - memory stays within its limit, and neither sending nor the timers go on for ever.
//!
//! In the end, when nobody says anything any more, every session ends too.

mod input;
mod live;
mod target;
mod world;

use input::Input;
use world::World;

/// The target.
pub fn run(data: &[u8]) {
    let Some(input) = Input::decode(data) else { return };
    if crate::tells() {
        eprintln!("{:#?}", input.settings);
    }
    let mut world = World::new(&input.settings);
    for step in &input.steps {
        world.step(step);
    }
    world.end();
}
