//! Two ends that already know each other, for tests.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snow::Builder;
use tcpcopy_common::response::{Response, ResponseHeader};

use super::{
    Psk, Security,
    link::{Link, Role},
    record::Cipher,
};

/// A report with these octets of payload. The payload is longer, if the header does not say how long.
pub(super) fn response(header: ResponseHeader, prefix: &[u8]) -> Response<'_> {
    let prefix_len = prefix.len() as u16;
    let payload_len = header.payload_len.max(prefix_len.into());
    Response::new(ResponseHeader { prefix_len, payload_len, ..header }, prefix).unwrap()
}

/// A new key on each call.
pub(super) fn psk() -> Security {
    Psk::generate().unwrap().into()
}

/// The ciphers of client and server after a handshake.
pub(super) fn ciphers(encrypted: bool) -> (Cipher, Cipher) {
    if !encrypted {
        return (Cipher::plain(), Cipher::plain());
    }
    let builder = || Builder::new("Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s".parse().unwrap()).psk(0, &[7; 32]).unwrap();
    let (mut a, mut b) = (builder().build_initiator().unwrap(), builder().build_responder().unwrap());
    let mut message = [0; 48];
    a.write_message(&[], &mut message).unwrap();
    b.read_message(&message, &mut []).unwrap();
    b.write_message(&[], &mut message).unwrap();
    a.read_message(&message, &mut []).unwrap();
    (Cipher::noise(a.into_transport_mode().unwrap()), Cipher::noise(b.into_transport_mode().unwrap()))
}

/// A TCP connection over loopback.
pub(super) fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// An established channel: the client's end and the server's.
pub(super) fn links(encrypted: bool) -> (Link, Link) {
    let (client, server) = sockets();
    let (a, b) = ciphers(encrypted);
    (Link::new(client, a, Role::Client).unwrap(), Link::new(server, b, Role::Server).unwrap())
}

/// Waits until `socket` can be read or its peer is gone. Fails the test after ten seconds.
pub(super) fn wait_readable(socket: &impl AsFd) {
    wait(socket, PollFlags::IN);
}

/// Waits until `socket` can be written.
pub(super) fn wait_writable(socket: &impl AsFd) {
    wait(socket, PollFlags::OUT);
}

fn wait(socket: &impl AsFd, flags: PollFlags) {
    let timeout = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(socket, flags)], Some(&timeout)).unwrap(), 1, "nothing happens");
}
