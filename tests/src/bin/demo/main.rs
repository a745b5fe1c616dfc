//! Mirrors live traffic between namespaces of this machine and shows what arrived: `cargo xtask demo`.

fn main() {}
