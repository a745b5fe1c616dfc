//! The order of requests and answers: a request that the live client sent because it had read an answer must not reach
//! the target before the target's own answer.

pub(crate) mod answers;
pub(crate) mod farewell;
pub(crate) mod frames;
pub(crate) mod gate;
pub(crate) mod greeting;
pub(crate) mod joining;
