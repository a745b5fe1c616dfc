//! HTTP/1.1 as far as the laboratory needs it: an embedded [`server`](Server) that remembers what it was asked and
//! when, a client that produces [`load`](Load), and one that asks when a [test](Client) says so.

mod client;
mod head;
mod load;
mod server;

pub use client::Client;
pub use head::request_id;
pub use load::{Limit, Load, LoadReport, Method, RunningLoad, Style};
pub use server::{Arrival, Server, Upload};
