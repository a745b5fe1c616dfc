//! A whole worker in the simulated world: its ports are a ring, a sink, channels and a thread in virtual time.
//!
//! ```text
//! live ─► ring ─► Worker ─► sink ─► path ─► target, one for each copy
//!                   ▲ ▲                        │
//!            orders │ └── channel ◄── path ◄───┘ reports and figures
//! ```
//!
//! The worker runs as it does in the program, until it returns. Time passes while it works (each record and each packet
//! costs some) and while it rests; whatever is due meanwhile happens meanwhile. What a port may expect of the worker is
//! checked where it is asked; a broken promise ends the run by a panic.

mod ports;
mod site;
mod world;

use std::{cell::RefCell, rc::Rc};

use tcpcopy_replay::{
    Engine, TargetId,
    worker::{Replica, Worker},
};

pub use self::world::Outcome;
use self::{
    ports::{Channels, Exit, Ring, Thread},
    world::World,
};
use crate::{live, live::START, scenario::Scenario, target::HOST};

/// The names of the two services: the kernel's rules, and the engine's rules for IPv4 and IPv6.
const RULES: [[Option<u16>; 2]; 2] = [[Some(0), Some(2)], [Some(1), Some(3)]];

/// Runs a worker through a scenario; `trace`: tells on standard error what happens.
///
/// # Errors
/// What went wrong in the end.
///
/// # Panics
/// When the worker breaks a promise on the way.
pub fn run(scenario: &Scenario, trace: bool) -> Result<crate::world::Outcome, String> {
    let (lives, captured) = live::play(scenario);
    let copies = scenario.surroundings.copies;
    let mut replicas = Vec::new();
    for copy in 0..copies {
        let config = crate::world::config(scenario, TargetId(copy as u16), HOST + copy as u8);
        let rules = RULES
            .iter()
            .enumerate()
            .map(|(rule, engine)| if serves(scenario, copy, rule) { *engine } else { [None; 2] });
        replicas.push(Replica::new(Engine::new(config, scenario.seed ^ copy as u64), rules.collect()));
    }
    let world = Rc::new(RefCell::new(World::new(scenario, &lives, captured, trace)));
    let (ring, exit, channels) = (Ring(Rc::clone(&world)), Exit(Rc::clone(&world)), Channels(Rc::clone(&world)));
    Worker::new(START, ring, replicas, exit, channels, 0..copies).run(Thread(Rc::clone(&world)));
    let world = Rc::into_inner(world).ok_or("the worker has kept a port")?.into_inner();
    world.verdict()
}

/// Whether a copy has a target for a rule of the kernel: of several, the last has one service only.
fn serves(scenario: &Scenario, copy: usize, rule: usize) -> bool {
    let copies = scenario.surroundings.copies;
    rule == 0 || copies == 1 || copy + 1 < copies
}
