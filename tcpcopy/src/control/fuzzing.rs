//! Ways in for the fuzzer: both ends of a channel whose peer is a script. No sockets, no time.

use std::{
    cell::RefCell,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Hello, Psk, Refusal, Security, Welcome,
    client::introduce,
    handshake::HandshakeError,
    link::{Link, Role},
    record::Cipher,
    server::hear,
};

/// A peer that says what it is given, so many octets at a time, then closes; what it hears it keeps.
#[derive(Debug, Default)]
pub struct Peer {
    script: RefCell<Script>,
}

#[derive(Debug, Default)]
struct Script {
    says: Vec<u8>,
    said: usize,
    chunk: usize,
    heard: Vec<u8>,
}

impl Peer {
    /// A peer that says `says`, in pieces of `chunk` octets, at least one.
    #[must_use]
    pub fn new(says: &[u8], chunk: usize) -> Self {
        let script = Script { says: says.to_vec(), said: 0, chunk: chunk.max(1), heard: Vec::new() };
        Self { script: RefCell::new(script) }
    }

    /// What it has heard.
    #[must_use]
    pub fn into_heard(self) -> Vec<u8> {
        self.script.into_inner().heard
    }

    /// How many octets of its script it has said.
    #[must_use]
    pub fn said(&self) -> usize {
        self.script.borrow().said
    }
}

impl Read for &Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut script = self.script.borrow_mut();
        let rest = &script.says[script.said..];
        let n = rest.len().min(script.chunk).min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        script.said += n;
        Ok(n)
    }
}

impl Write for &Peer {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.script.borrow_mut().heard.extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Peer {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = (&*self).read(buffer.initialize_unfilled())?;
        buffer.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready((&*self).write(octets))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The end of a future that has nothing to wait for; `None` if it waits.
fn at_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// What security there is, with a key or without.
#[must_use]
pub fn security(key: Option<[u8; 32]>) -> Security {
    key.map_or(Security::Insecure, |key| Psk::from_octets(key).into())
}

/// `intercept` hears a peer that wants to register, and may have to refuse it. `None` if it waits for a peer that has
/// said all.
pub fn accept(peer: &mut Peer, security: &Security) -> Option<Result<Result<Hello, Refusal>, HandshakeError>> {
    at_once(hear(peer, security)).map(|heard| heard.map(|(_, hello)| hello))
}

/// `tcpcopy` introduces itself to a peer. `None` if it waits for a peer that has said all.
pub fn introduce_to(
    peer: &mut Peer,
    security: &Security,
    hello: &Hello,
) -> Option<Result<Result<Welcome, Refusal>, HandshakeError>> {
    at_once(introduce(peer, security, hello)).map(|answered| answered.map(|(_, answer)| answer))
}

/// An established channel without a key, whose other end is `peer`; the near end is that of `tcpcopy`, or of `intercept`.
#[must_use]
pub fn link(peer: Peer, of_tcpcopy: bool) -> Link<Peer> {
    let role = if of_tcpcopy { Role::Client } else { Role::Server };
    Link::over(peer, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Cipher::plain(), role)
}

/// What the peer of a link has heard.
#[must_use]
pub fn heard(link: Link<Peer>) -> Vec<u8> {
    link.into_socket().into_heard()
}
