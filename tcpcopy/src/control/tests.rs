//! Client and server together, over real loopback connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tcpcopy_common::{
    mark::{Epoch, MarkKey},
    prefix::Prefix,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::{
    server::lacks_ipv6,
    testing::{psk, wait_readable},
    *,
};

const RESUMABLE: Resume = Resume { instance: 7, token: Token([9; 16]) };

/// Gives everybody the instance 1, and the resumable instance to those who prove that it was theirs.
struct Clerk {
    accepted: mpsc::UnboundedSender<Accepted>,
    registered: Mutex<Vec<(Hello, SocketAddr)>>,
}

impl Registry for Clerk {
    fn register(&self, hello: &Hello, peer: SocketAddr) -> Result<Welcome, Refusal> {
        self.registered.lock().unwrap().push((hello.clone(), peer));
        let instance = match hello.resume {
            None => 1,
            Some(proof) if proof == RESUMABLE => proof.instance,
            Some(_) => return Err(Refusal::new(RefusalCode::CannotResume, "no proof")),
        };
        Ok(Welcome { instance, key: MarkKey { k0: 1, k1: 2 }, epoch: Epoch(4), token: Token([3; 16]) })
    }

    fn established(&self, accepted: Accepted) {
        self.accepted.send(accepted).unwrap();
    }
}

/// A running server; ends with the test's runtime.
struct Server {
    address: SocketAddr,
    counters: Arc<ServerCounters>,
    accepted: mpsc::UnboundedReceiver<Accepted>,
    clerk: Arc<Clerk>,
    task: JoinHandle<()>,
}

impl Server {
    fn start(security: &Security) -> Self {
        let listener = Listener::bind(&["127.0.0.1:0".parse().unwrap()], security.clone()).unwrap();
        let address = listener.local_addresses().unwrap()[0];
        let counters = Arc::<ServerCounters>::default();
        let (sender, accepted) = mpsc::unbounded_channel();
        let clerk = Arc::new(Clerk { accepted: sender, registered: Mutex::default() });
        let task = tokio::spawn(listener.run(Arc::clone(&clerk), Arc::clone(&counters)));
        Self { address, counters, accepted, clerk, task }
    }

    /// Waits until `counter` has come to `value`; the test's other futures run meanwhile.
    async fn counted(&self, counter: impl Fn(&ServerCounters) -> &AtomicU64, value: u64) {
        let reached = async {
            while counter(&self.counters).load(Ordering::Relaxed) != value {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap_or_else(|_| panic!("{:?}", self.counters));
    }
}

fn hello(resume: Option<Resume>) -> Hello {
    Hello::new(3, resume, "web1")
}

/// Sends a frame each way.
fn assert_works(client: &mut Link, server: &mut Link) {
    assert_eq!(client.send(&Frame::Hurry).unwrap(), Sent::Queued);
    assert!(client.flush().unwrap());
    wait_readable(server);
    assert_eq!(server.receive(|frame| assert_eq!(frame, Frame::Hurry)).unwrap(), 1);
    let stats = Frame::Stats(Stats { responses_dropped: 8, ..Stats::default() });
    assert_eq!(server.send(&stats).unwrap(), Sent::Queued);
    assert!(server.flush().unwrap());
    wait_readable(client);
    assert_eq!(client.receive(|frame| assert_eq!(frame, stats)).unwrap(), 1);
}

#[tokio::test]
async fn a_worker_registers_and_both_links_work() {
    for security in [psk(), Security::Insecure] {
        let mut server = Server::start(&security);
        let mut established = connect(server.address, &security, &hello(None)).await.unwrap();
        let mut accepted = server.accepted.recv().await.unwrap();
        assert_eq!(established.welcome, accepted.welcome);
        assert_eq!(accepted.hello, hello(None));
        assert_eq!(server.clerk.registered.lock().unwrap()[0].1, accepted.link.peer());
        assert_eq!(established.link.peer(), server.address);
        assert_works(&mut established.link, &mut accepted.link);
        server.counted(|c| &c.accepted, 1).await;
    }
}

#[tokio::test]
async fn established_links_outlive_the_listener_and_strangers_do_not_disturb_them() {
    let security = psk();
    let mut server = Server::start(&security);
    let mut established = connect(server.address, &security, &hello(None)).await.unwrap();
    let mut accepted = server.accepted.recv().await.unwrap();
    for _ in 0..20 {
        let mut stranger = TcpStream::connect(server.address).await.unwrap();
        stranger.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    }
    server.counted(|c| &c.garbage, 20).await;
    assert_works(&mut established.link, &mut accepted.link);
    server.task.abort();
    assert!(server.task.await.unwrap_err().is_cancelled());
    assert!(TcpStream::connect(server.address).await.is_err(), "the port is still open");
    assert_works(&mut established.link, &mut accepted.link);
}

/// Written from `docs/wire-protocol.md` alone, without the code under test.
#[tokio::test]
async fn a_client_written_from_the_document_is_understood() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("psk");
    std::fs::write(&path, "00".repeat(31) + "2A\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut key = [0; 32];
    key[31] = 0x2a;
    let mut server = Server::start(&Security::Psk(Arc::new(Keyring::read(path, rustix::process::geteuid()).unwrap())));

    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut prologue = *b"\x93tcp\x02\x00\x01\x00????????";
    stream.write_all(&prologue[..8]).await.unwrap();
    stream.read_exact(&mut prologue[8..]).await.unwrap();
    assert_eq!(&prologue[8..], b"\x93tcp\x02\x00\x01\x00");
    let noise = snow::Builder::new("Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s".parse().unwrap());
    let mut noise = noise.psk(0, &key).unwrap().prologue(&prologue).unwrap().build_initiator().unwrap();
    let mut octets = [0; 128];
    octets[0] = 48;
    noise.write_message(&[], &mut octets[2..]).unwrap();
    stream.write_all(&octets[..50]).await.unwrap();
    stream.read_exact(&mut octets[..50]).await.unwrap();
    assert_eq!(octets[..2], [48, 0]);
    noise.read_message(&octets[2..50], &mut []).unwrap();
    let mut noise = noise.into_transport_mode().unwrap();

    let hello = b"\x01\x03\x00\x00\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x04web1\
        \0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\x03\x1f\x90\0\x04";
    octets[0] = noise.write_message(hello, &mut octets[2..]).unwrap() as u8;
    stream.write_all(&octets[..2 + hello.len() + 16]).await.unwrap();
    stream.read_exact(&mut octets[..2]).await.unwrap();
    assert_eq!(octets[..2], [41 + 16, 0]);
    stream.read_exact(&mut octets[2..2 + 41 + 16]).await.unwrap();
    let mut welcome = [0; 41];
    noise.read_message(&octets[2..2 + 41 + 16], &mut welcome).unwrap();
    let expected = b"\x02\x01\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\
        \x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03";
    assert_eq!(&welcome, expected);
    let prefixes = vec![("10.0.0.3:8080".parse().unwrap(), Prefix::new(1024).unwrap())];
    assert_eq!(server.accepted.recv().await.unwrap().hello, self::hello(None).with_prefixes(prefixes));
}

#[tokio::test]
async fn a_prefix_that_cannot_be_is_refused_by_name_and_counted() {
    let security = psk();
    let mut server = Server::start(&security);
    let target = "[2001:db8::3]:443".parse().unwrap();
    let asked = |prefixes| hello(None).with_prefixes(prefixes);
    let whole = asked(vec![(target, Prefix::MOST), ("10.0.0.3:443".parse().unwrap(), Prefix::NONE)]);
    connect(server.address, &security, &whole).await.unwrap();
    assert_eq!(server.accepted.recv().await.unwrap().hello, whole);

    let twice = asked(vec![(target, Prefix::MOST), (target, Prefix::LEAST)]);
    let error = connect(server.address, &security, &twice).await.unwrap_err();
    let ConnectError::Refused { refusal, .. } = &error else { panic!("{error}") };
    assert_eq!(refusal.code, RefusalCode::BadPrefix);
    assert!(error.is_permanent() && error.to_string().contains("[2001:db8::3]:443 are asked for twice"), "{error}");
    server.counted(|c| &c.refused, 1).await;
    assert_eq!(server.clerk.registered.lock().unwrap().len(), 1, "nobody else was registered");
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_counted_and_the_client_told() {
    let server = Server::start(&psk());
    let error = connect(server.address, &psk(), &hello(None)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { cause: HandshakeError::BadKey, .. }), "{error}");
    assert!(error.is_permanent());
    server.counted(|c| &c.bad_key, 1).await;
    assert!(server.clerk.registered.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_key_on_one_side_only_is_refused_and_counted_and_the_client_told() {
    for (ours, theirs) in [(psk(), Security::Insecure), (Security::Insecure, psk())] {
        let server = Server::start(&theirs);
        let error = connect(server.address, &ours, &hello(None)).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::Handshake { cause: HandshakeError::SecurityMismatch { .. }, .. }),
            "{error}"
        );
        assert!(error.is_permanent());
        server.counted(|c| &c.insecure_mismatch, 1).await;
        assert!(server.clerk.registered.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn garbage_another_version_and_a_closed_connection_are_counted() {
    let server = Server::start(&psk());
    let mut stranger = TcpStream::connect(server.address).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset or an end, but no octet that would tell a scanner what listens here.
    let _ = stranger.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    server.counted(|c| &c.garbage, 1).await;

    let mut stranger = TcpStream::connect(server.address).await.unwrap();
    stranger.write_all(b"\x93tcp\xff\xff\x01\0").await.unwrap();
    stranger.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"\x93tcp\x02\0\x01\x01", "version 2, key, verdict 1");
    server.counted(|c| &c.wrong_version, 1).await;

    drop(TcpStream::connect(server.address).await.unwrap());
    server.counted(|c| &c.closed, 1).await;
}

#[tokio::test]
async fn silent_connections_give_way_to_an_honest_peer_of_the_same_address() {
    let security = psk();
    let server = Server::start(&security);
    let mut silent = Vec::new();
    for _ in 0..70 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    server.counted(|c| &c.too_many, 6).await;
    connect(server.address, &security, &hello(None)).await.unwrap();
    server.counted(|c| &c.accepted, 1).await;
}

#[tokio::test]
async fn an_instance_is_resumed_with_its_token_only() {
    let security = psk();
    let mut server = Server::start(&security);
    let resumed = connect(server.address, &security, &hello(Some(RESUMABLE))).await.unwrap();
    assert_eq!(resumed.welcome.instance, 7);
    assert_eq!(server.accepted.recv().await.unwrap().hello.resume, Some(RESUMABLE));

    let forged = Resume { token: Token([8; 16]), ..RESUMABLE };
    let error = connect(server.address, &security, &hello(Some(forged))).await.unwrap_err();
    let ConnectError::Refused { refusal, .. } = &error else { panic!("{error}") };
    assert_eq!((refusal.code, refusal.text()), (RefusalCode::CannotResume, "no proof"));
    assert!(error.cannot_resume() && !error.is_permanent());
    server.counted(|c| &c.refused, 1).await;
    server.counted(|c| &c.accepted, 1).await;
}

#[tokio::test]
async fn a_port_where_nobody_or_somebody_else_listens_is_explained() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap();
    let answer = async {
        let (mut stream, _) = other.accept().await.unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    };
    let security = psk();
    let hello = hello(None);
    let (error, ()) = tokio::join!(connect(address, &security, &hello), answer);
    let error = error.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { cause: HandshakeError::NotTcpcopy, .. }), "{error}");
    drop(other);
    let error = connect(address, &security, &hello).await.unwrap_err();
    assert!(matches!(error, ConnectError::Dial { .. }) && !error.is_permanent(), "{error}");
    assert!(error.to_string().contains("is its port right"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_intercept_that_never_answers_times_out() {
    // Accepts in the kernel only. Paused time runs on by itself once nothing else can happen.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let start = tokio::time::Instant::now();
    let error = connect(silent.local_addr().unwrap(), &psk(), &hello(None)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    assert_eq!(start.elapsed(), HANDSHAKE_DEADLINE);
}

#[tokio::test]
async fn a_port_in_use_and_an_address_of_another_host_are_explained() {
    let security = Security::Insecure;
    let first = Listener::bind(&["127.0.0.1:0".parse().unwrap()], security.clone()).unwrap();
    let taken = first.local_addresses().unwrap()[0];
    let error = Listener::bind(&[taken], security.clone()).unwrap_err();
    assert!(matches!(error, ServerError::PortInUse { address } if address == taken), "{error}");
    assert!(error.to_string().contains("another port on both sides"), "{error}");
    let error = Listener::bind(&["192.0.2.1:0".parse().unwrap()], security.clone()).unwrap_err();
    assert!(matches!(error, ServerError::NoSuchAddress { .. }), "{error}");
    assert!(matches!(Listener::bind(&[], security), Err(ServerError::NoAddress)));
}

#[tokio::test]
async fn ipv4_and_ipv6_share_a_port() {
    let first = Listener::bind(&["0.0.0.0:0".parse().unwrap()], Security::Insecure).unwrap();
    let port = first.local_addresses().unwrap()[0].port();
    let everywhere = SocketAddr::from(([0u16; 8], port));
    match Listener::bind(&[everywhere], Security::Insecure) {
        Ok(second) => assert_eq!(second.local_addresses().unwrap(), [everywhere]),
        Err(ServerError::Io { cause, .. }) if lacks_ipv6(everywhere, &cause) => {
            crate::net::testing::skip(&format!("no IPv6 here: {cause}"))
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn several_addresses_are_served_by_one_listener() {
    let security = psk();
    let any_port = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&[any_port, any_port], security.clone()).unwrap();
    let addresses = listener.local_addresses().unwrap();
    let (sender, mut accepted) = mpsc::unbounded_channel();
    let clerk = Arc::new(Clerk { accepted: sender, registered: Mutex::default() });
    tokio::spawn(listener.run(clerk, Arc::default()));
    for address in addresses {
        connect(address, &security, &hello(None)).await.unwrap();
        accepted.recv().await.unwrap();
    }
}
