//! How two sides that just met agree on version, security and keys.
//!
//! 1. Each side sends a preamble in plain text: magic, protocol version, whether it has a key. The server's also holds
//!    its verdict on the client's.
//! 2. With a key: one message each way of Noise `NNpsk0`. Both preambles are its prologue, so neither can have been
//!    changed on the way. The client's message already proves that it has the key, before the server does any
//!    elliptic-curve work; an empty record in place of the server's message says that the proof failed.
//! 3. The client sends Hello, the server Welcome or Refused, as records. Only a Hello that decrypts shows that the
//!    client is there now: a recorded first message can be replayed.
//!
//! Works on anything that reads and writes, and waits without limit: deadlines are the caller's.

use std::io;

use snow::{Builder, HandshakeState};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    frame::{Frame, FrameError, MAX_OPENING_FRAME},
    keyring::Keys,
    parameters::{PROTOCOL_VERSION, Security},
    record::{Cipher, HEADER, OpenError, TAG},
};

/// The first octet is no ASCII, so that no text protocol starts like this.
const MAGIC: [u8; 4] = *b"\x93tcp";
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// A Noise message of the handshake: an ephemeral public key and the tag of an empty payload.
const MESSAGE: usize = 32 + TAG;
/// Octets of a preamble.
const PREAMBLE: usize = 8;
/// The largest record body that is read before the peer is known.
const MAX_OPENING_BODY: usize = MAX_OPENING_FRAME + TAG;

/// Why two sides did not come together. Seen from either.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer does not speak this protocol.
    #[error("the other side does not speak tcpcopy's control protocol: is the port right, and nothing else on it?")]
    NotTcpcopy,
    /// The peer speaks another version of it.
    #[error(
        "the other side speaks version {theirs} of the control protocol, this side version {PROTOCOL_VERSION}: install \
         the same release on both hosts"
    )]
    Version {
        /// The peer's.
        theirs: u16,
    },
    /// One side has a key, the other runs without.
    #[error(
        "the other side {}: give both sides the same key file, or run both without",
        if *theirs_is_insecure { "has no key, this side wants one" } else { "wants a key, this side has none" }
    )]
    SecurityMismatch {
        /// Whether it is the peer that runs without a key.
        theirs_is_insecure: bool,
    },
    /// The peer's key is another one.
    #[error("the other side has a different key: copy the same key file to both hosts (see `tcpcopy keygen`)")]
    BadKey,
    /// What came was changed on the way.
    #[error(
        "the handshake was changed on its way: something between the hosts interferes; look for proxies and middleboxes"
    )]
    Tampered,
    /// A frame that does not belong here.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer closed the connection in the middle.
    #[error(
        "the other side closed the connection during the handshake: see its log; it may be flooded with connections, \
         or a firewall may be in between"
    )]
    Closed,
    /// The connection broke.
    #[error("the connection broke during the handshake: {0}; check the network between the hosts")]
    Io(io::Error),
    /// The Noise library failed.
    #[error("the key exchange failed: {0}; does the kernel give random numbers (getrandom(2))?")]
    Noise(snow::Error),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl From<OpenError> for HandshakeError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Decrypt => Self::Tampered,
            OpenError::Frame(error) => Self::Frame(error),
        }
    }
}

impl Security {
    const fn mode(&self) -> u8 {
        match self {
            Self::Insecure => 0,
            Self::Psk(_) => 1,
        }
    }
}

/// The server's judgement of the client's preamble, in its own.
mod verdict {
    pub(super) const ACCEPTED: u8 = 0;
    pub(super) const VERSION: u8 = 1;
    pub(super) const SECURITY: u8 = 2;
}

/// The client's side of steps 1 and 2.
pub(super) async fn initiate<S>(stream: &mut S, security: &Security) -> Result<Cipher, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ours = preamble(security, 0);
    stream.write_all(&ours).await?;
    let mut theirs = [0; PREAMBLE];
    read_preamble(stream, &mut theirs, 0).await?;
    compare(&theirs, security)?;
    if theirs[7] != verdict::ACCEPTED {
        // It judged another preamble than the one that we sent.
        return Err(HandshakeError::Tampered);
    }
    let Security::Psk(keyring) = security else { return Ok(Cipher::plain()) };

    let prologue = [ours, theirs].concat();
    let keys = keyring.keys();
    let builder = builder(keys.connecting().octets(), &prologue)?;
    let mut noise = builder.build_initiator().map_err(HandshakeError::Noise)?;
    write_message(stream, &mut noise).await?;
    let message = match read_header(stream).await? {
        MESSAGE => read_message(stream).await?,
        0 => return Err(HandshakeError::BadKey),
        len => return Err(FrameError::TooLarge(len).into()),
    };
    // The server checked our key before it answered: an answer that fails is not its own.
    noise.read_message(&message, &mut []).map_err(|_| HandshakeError::Tampered)?;
    Ok(Cipher::noise(noise.into_transport_mode().map_err(HandshakeError::Noise)?))
}

/// The proof that the first octet of a preamble has come.
pub(super) struct FirstOctet(());

/// Receives the first octet: until then nobody has said anything.
pub(super) async fn first_octet<S>(stream: &mut S) -> Result<FirstOctet, HandshakeError>
where
    S: AsyncRead + Unpin,
{
    if stream.read_u8().await? == MAGIC[0] { Ok(FirstOctet(())) } else { Err(HandshakeError::NotTcpcopy) }
}

/// The server's side of steps 1 and 2, once the first octet has come.
pub(super) async fn respond<S>(
    stream: &mut S,
    FirstOctet(()): FirstOctet,
    security: &Security,
) -> Result<Cipher, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut theirs = [0; PREAMBLE];
    theirs[0] = MAGIC[0];
    read_preamble(stream, &mut theirs, 1).await?;
    let judged = compare(&theirs, security);
    let ours = preamble(
        security,
        match judged {
            Err(HandshakeError::Version { .. }) => verdict::VERSION,
            Err(_) => verdict::SECURITY,
            Ok(()) => verdict::ACCEPTED,
        },
    );
    stream.write_all(&ours).await?;
    judged?;
    let Security::Psk(keyring) = security else { return Ok(Cipher::plain()) };

    let prologue = [theirs, ours].concat();
    let message = match read_header(stream).await? {
        MESSAGE => read_message(stream).await?,
        len => return Err(FrameError::TooLarge(len).into()),
    };
    let Some(mut noise) = recognise(&keyring.keys(), &prologue, &message)? else {
        // Tell the honest client with the wrong key file; whoever else it is learns nothing new.
        stream.write_all(&[0; HEADER]).await?;
        return Err(HandshakeError::BadKey);
    };
    write_message(stream, &mut noise).await?;
    Ok(Cipher::noise(noise.into_transport_mode().map_err(HandshakeError::Noise)?))
}

/// Returns the server's side of a handshake under that of the accepted keys which opens the client's message.
fn recognise(keys: &Keys, prologue: &[u8], message: &[u8]) -> Result<Option<HandshakeState>, HandshakeError> {
    for key in keys.accepted() {
        let mut noise = builder(key.octets(), prologue)?.build_responder().map_err(HandshakeError::Noise)?;
        if noise.read_message(message, &mut []).is_ok() {
            return Ok(Some(noise));
        }
    }
    Ok(None)
}

/// Sends one frame of step 3.
pub(super) async fn write_frame<S>(stream: &mut S, cipher: &mut Cipher, frame: &Frame<'_>) -> Result<(), HandshakeError>
where
    S: AsyncWrite + Unpin,
{
    let mut record = Vec::with_capacity(cipher.sealed_len(frame));
    cipher.seal(frame, &mut record)?;
    Ok(stream.write_all(&record).await?)
}

/// Receives one frame of step 3 and not an octet more, and hands it to `take`.
pub(super) async fn read_frame<S, T>(
    stream: &mut S,
    cipher: &mut Cipher,
    take: impl FnOnce(Frame<'_>) -> Result<T, HandshakeError>,
) -> Result<T, HandshakeError>
where
    S: AsyncRead + Unpin,
{
    let len = read_header(stream).await?;
    let mut body = [0; MAX_OPENING_BODY];
    let body = body.get_mut(..len).ok_or(FrameError::TooLarge(len))?;
    stream.read_exact(body).await?;
    take(cipher.open(body)?)
}

fn preamble(security: &Security, verdict: u8) -> [u8; PREAMBLE] {
    let [m0, m1, m2, m3] = MAGIC;
    let [v0, v1] = PROTOCOL_VERSION.to_le_bytes();
    [m0, m1, m2, m3, v0, v1, security.mode(), verdict]
}

/// Reads a preamble of which so many octets are there, and gives up at the first octet that is none of ours instead of
/// waiting for eight.
async fn read_preamble<S>(
    stream: &mut S,
    preamble: &mut [u8; PREAMBLE],
    mut filled: usize,
) -> Result<(), HandshakeError>
where
    S: AsyncRead + Unpin,
{
    while filled < PREAMBLE {
        match stream.read(&mut preamble[filled..]).await? {
            0 => return Err(HandshakeError::Closed),
            n => filled += n,
        }
        let known = filled.min(MAGIC.len());
        if preamble[..known] != MAGIC[..known] {
            return Err(HandshakeError::NotTcpcopy);
        }
    }
    Ok(())
}

/// Whether the peer's preamble agrees with us. Version first: of another version nothing else is known.
fn compare(theirs: &[u8; PREAMBLE], security: &Security) -> Result<(), HandshakeError> {
    let version = u16::from_le_bytes([theirs[4], theirs[5]]);
    if version != PROTOCOL_VERSION {
        return Err(HandshakeError::Version { theirs: version });
    }
    if theirs[6] != security.mode() {
        return Err(HandshakeError::SecurityMismatch { theirs_is_insecure: theirs[6] == Security::Insecure.mode() });
    }
    Ok(())
}

fn builder<'a>(key: &'a [u8; 32], prologue: &'a [u8]) -> Result<Builder<'a>, HandshakeError> {
    PATTERN
        .parse()
        .and_then(|parameters| Builder::new(parameters).psk(0, key)?.prologue(prologue))
        .map_err(HandshakeError::Noise)
}

async fn write_message<S>(stream: &mut S, noise: &mut HandshakeState) -> Result<(), HandshakeError>
where
    S: AsyncWrite + Unpin,
{
    let mut record = [0; HEADER + MESSAGE];
    record[..HEADER].copy_from_slice(&(MESSAGE as u16).to_le_bytes());
    noise.write_message(&[], &mut record[HEADER..]).map_err(HandshakeError::Noise)?;
    Ok(stream.write_all(&record).await?)
}

async fn read_message<S>(stream: &mut S) -> Result<[u8; MESSAGE], HandshakeError>
where
    S: AsyncRead + Unpin,
{
    let mut message = [0; MESSAGE];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn read_header<S>(stream: &mut S) -> Result<usize, HandshakeError>
where
    S: AsyncRead + Unpin,
{
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    Ok(usize::from(u16::from_le_bytes(header)))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::control::testing::psk;

    type Ended = Result<Cipher, HandshakeError>;

    /// Runs both sides over a pipe; `tamper` sees the octets of each direction at their offset in it.
    async fn run(client: &Security, server: &Security, tamper: impl Fn(bool, usize, &mut u8) + Copy) -> (Ended, Ended) {
        let (mut a, mut a_far) = duplex(1024);
        let (mut b, mut b_far) = duplex(1024);
        let relay = async {
            let (mut a_read, mut a_write) = tokio::io::split(&mut a_far);
            let (mut b_read, mut b_write) = tokio::io::split(&mut b_far);
            tokio::join!(
                pass(&mut a_read, &mut b_write, |at, octet| tamper(true, at, octet)),
                pass(&mut b_read, &mut a_write, |at, octet| tamper(false, at, octet)),
            );
        };
        let client = async {
            let ended = initiate(&mut a, client).await;
            drop(a);
            ended
        };
        let server = async {
            let ended = match first_octet(&mut b).await {
                Ok(first) => respond(&mut b, first, server).await,
                Err(error) => Err(error),
            };
            drop(b);
            ended
        };
        let (client, server, ()) = tokio::join!(client, server, relay);
        (client, server)
    }

    async fn pass<R, W>(from: &mut R, to: &mut W, tamper: impl Fn(usize, &mut u8))
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut at = 0;
        while let Ok(mut octet) = from.read_u8().await {
            tamper(at, &mut octet);
            at += 1;
            if to.write_u8(octet).await.is_err() {
                break;
            }
        }
        // Either side is gone when the other is: shutting down tells it.
        let _ = to.shutdown().await;
    }

    async fn undisturbed(client: &Security, server: &Security) -> (Ended, Ended) {
        run(client, server, |_, _, _| {}).await
    }

    #[tokio::test]
    async fn both_ends_understand_each_other_afterwards() {
        for security in [psk(), Security::Insecure] {
            let (client, server) = undisturbed(&security, &security).await;
            let (mut client, mut server) = (client.unwrap(), server.unwrap());
            let frame = Frame::Hurry;
            let mut record = Vec::new();
            client.seal(&frame, &mut record).unwrap();
            assert_eq!(server.open(&record[HEADER..]), Ok(frame));
            record.clear();
            server.seal(&frame, &mut record).unwrap();
            assert_eq!(client.open(&record[HEADER..]), Ok(frame));
        }
    }

    #[tokio::test]
    async fn another_key_is_named_on_both_sides() {
        let (client, server) = undisturbed(&psk(), &psk()).await;
        assert!(matches!(client, Err(HandshakeError::BadKey)));
        assert!(matches!(server, Err(HandshakeError::BadKey)));
    }

    #[tokio::test]
    async fn a_key_on_one_side_only_is_named_on_both_sides() {
        for (client, server, client_is_insecure) in
            [(Security::Insecure, psk(), true), (psk(), Security::Insecure, false)]
        {
            let (client, server) = undisturbed(&client, &server).await;
            for (error, expected) in [(client, !client_is_insecure), (server, client_is_insecure)] {
                let Err(error) = error else { panic!("connected") };
                let HandshakeError::SecurityMismatch { theirs_is_insecure } = error else { panic!("{error}") };
                assert_eq!(theirs_is_insecure, expected);
                assert!(error.to_string().contains("the same key file"), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn another_version_is_named_on_both_sides() {
        let security = psk();
        let (client, server) = run(&security, &security, |_, at, octet| {
            if at == 4 {
                *octet = 9;
            }
        })
        .await;
        assert!(matches!(client, Err(HandshakeError::Version { theirs: 9 })));
        assert!(matches!(server, Err(HandshakeError::Version { theirs: 9 })));
    }

    #[tokio::test]
    async fn no_octet_of_the_handshake_can_be_changed_on_the_way() {
        let security = psk();
        for to_server in [true, false] {
            for at in 0..PREAMBLE + HEADER + MESSAGE {
                let (client, server) = run(&security, &security, |direction, n, octet| {
                    if direction == to_server && n == at {
                        *octet ^= 0x80;
                    }
                })
                .await;
                // The server cannot know about its last message; the client that rejects it never says Hello.
                assert!(client.is_err(), "octet {at} to the {}", if to_server { "server" } else { "client" });
                assert!(!to_server || server.is_err(), "octet {at} to the server");
            }
        }
    }

    #[tokio::test]
    async fn a_downgrade_on_the_way_is_refused_by_both_sides() {
        let security = psk();
        let (client, server) = run(&security, &security, |_, at, octet| {
            if at == 6 {
                *octet = Security::Insecure.mode();
            }
        })
        .await;
        assert!(matches!(client, Err(HandshakeError::SecurityMismatch { theirs_is_insecure: true })));
        assert!(matches!(server, Err(HandshakeError::SecurityMismatch { theirs_is_insecure: true })));
    }
}
