//! HTTP/1.1 as far as the laboratory needs it: an embedded [`server`](Server) that remembers what it was asked and when,
//! and a client that produces [`load`](Load).

mod head;
mod load;
mod server;

pub use load::{Limit, Load, LoadReport, Method, RunningLoad, Style};
pub use server::{Arrival, Server, Upload};

/// The identifier in a request's URI: the digits after `id=`.
pub fn request_id(uri: &str) -> Option<u64> {
    let digits = &uri[uri.find("id=")? + 3..];
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}
