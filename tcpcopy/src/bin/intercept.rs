//! The program `intercept`.
fn main() {}
