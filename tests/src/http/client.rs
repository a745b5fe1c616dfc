//! A client with one connection, which asks when a test says so.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::ensure;

use crate::{Host, PATIENCE};

/// A client that keeps its connection, and asks one thing at a time. Dropping it closes the connection.
pub struct Client {
    stream: TcpStream,
    address: SocketAddr,
}

impl Client {
    /// Connects from a host to an embedded [`Server`](super::Server).
    pub fn connect(from: &Host, server: SocketAddr) -> anyhow::Result<Self> {
        let stream = from.run(|| TcpStream::connect(server))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let address = stream.local_addr()?;
        Ok(Self { stream, address })
    }

    /// Returns its own address. Clients of both families may have one port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Asks, with its port for the identifier, and reads the whole answer.
    pub fn ask(&mut self) -> anyhow::Result<()> {
        self.request(self.port().into())
    }

    /// Asks, in one segment, with an identifier, and reads the whole answer.
    pub fn request(&mut self, id: u64) -> anyhow::Result<()> {
        self.send(&format!("GET /size/1?id={id} HTTP/1.1\r\nHost: lab\r\n\r\n"))?;
        let mut answer = Vec::new();
        // Its body is one octet.
        while !answer.ends_with(b"\r\n\r\nx") {
            let mut piece = [0; 512];
            let length = self.stream.read(&mut piece)?;
            ensure!(length > 0, "the live server closed");
            answer.extend(&piece[..length]);
        }
        Ok(())
    }

    /// Sends a text and reads nothing.
    pub fn send(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.stream.write_all(text.as_bytes())?)
    }
}
