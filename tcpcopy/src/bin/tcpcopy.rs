//! The program `tcpcopy`.
fn main() {}
