//! HTTP/1.1 as far as the laboratory needs it: an embedded [`server`](Server) that remembers what it was asked and
//! when, and a client that produces [`load`](Load).

mod head;
mod load;
mod server;

pub use head::request_id;
pub use load::{Limit, Load, LoadReport, Method, RunningLoad, Style};
pub use server::{Arrival, Server, Upload};
