//! The protocols that people mirror, with real servers on both sides: the octets that the target receives on each
//! connection are those that the live server received, and what the servers hold in the end is the same.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE,
    capture::{End, Sniffer},
    eventually,
    http::{Limit, Load, Style},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    postgres::Cluster,
    servers::{PYTHON, RealServer, python_has},
    streams::Streams,
};

/// What a server holds.
type State<'a> = &'a dyn Fn(&Host, u16) -> String;

/// Runs `drive` against a live server, and compares what it has sent on each connection with what the target got.
/// `state` tells what a server holds, asked by way of its own host, which is not mirrored.
fn mirrored(start: impl Fn(&Host, u16) -> RealServer, drive: impl FnOnce(&Lab, SocketAddr), state: Option<State<'_>>) {
    let lab = Lab::bridge().unwrap();
    let _live = start(&lab.source, LIVE_PORT);
    let _test = start(&lab.target, TARGET_PORT);
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let sniff = |host: &Host| Sniffer::start(host, host, End::Destination).unwrap();
    let sniffers = [sniff(&lab.source), sniff(&lab.target)];
    drive(&lab, lab.source.socket(Family::V4, LIVE_PORT));
    let mut streams = [Streams::to(LIVE_PORT), Streams::to(TARGET_PORT)];
    let equal = eventually(PATIENCE, || {
        streams.iter_mut().zip(&sniffers).for_each(|(streams, sniffer)| streams.add(sniffer.take()));
        streams[0].contents() == streams[1].contents()
    });
    let states = state.map(|state| {
        let both = || (state(&lab.source, LIVE_PORT), state(&lab.target, TARGET_PORT));
        // What has arrived may still have to be carried out.
        eventually(PATIENCE, || matches!(both(), (live, replayed) if live == replayed));
        both()
    });
    let outcome = mirror.stop().unwrap();
    for (streams, sniffer) in streams.iter_mut().zip(sniffers) {
        // It fails when packets were missed, and an absence would prove nothing.
        streams.add(sniffer.stop().unwrap());
    }
    let [live, replayed] = streams.map(|streams| streams.contents());
    assert!(!live.is_empty(), "nothing was sent");
    let difference = live.iter().zip(&replayed).find(|(a, b)| a != b).map(|(a, b)| {
        [a, b].map(|octets| format!("{} octets, {}", octets.len(), octets[..octets.len().min(300)].escape_ascii()))
    });
    assert!(
        equal && live == replayed,
        "{} live connections and {} replayed ones differ: {difference:#?}\n{}",
        live.len(),
        replayed.len(),
        outcome.table
    );
    if let Some((live, replayed)) = states {
        assert_eq!(live, replayed, "{}", outcome.table);
    }
    outcome.assert_no_leak();
}

/// A connection for protocols of lines: says something, and reads so many lines in answer.
struct Talk(BufReader<TcpStream>);

impl Talk {
    fn to(server: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&server, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, words: &[u8]) {
        self.0.get_mut().write_all(words).unwrap();
    }

    fn hear(&mut self, lines: usize) -> String {
        let mut heard = String::new();
        (0..lines).for_each(|_| assert!(self.0.read_line(&mut heard).unwrap() > 0, "the server closed: {heard}"));
        heard
    }

    fn ask(&mut self, words: &str, lines: usize) -> String {
        self.say(format!("{words}\r\n").as_bytes());
        self.hear(lines)
    }
}

#[test]
fn http_1_1_pipelined_chunked_and_with_expectations() {
    let _guard = laboratory!();
    let start = |host: &Host, port| RealServer::apache(host, port, 100_000).unwrap();
    mirrored(
        start,
        |lab, server| {
            let load = Load {
                style: Style::Pipelined(8),
                any_status: true,
                ..Load::keep_alive(server, 8, Limit::Requests(800))
            };
            assert_eq!(load.run(&lab.client).unwrap().failed, Vec::<String>::new());
            let body = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(body.path(), "0123456789".repeat(200_000)).unwrap();
            let file = body.path().display();
            for header in ["Transfer-Encoding: chunked", "Expect: 100-continue"] {
                let header = header.replace(' ', "");
                let curl = format!(
                    "curl -sS -o /dev/null -H {header} --data-binary @{file} http://{server}/?x http://{server}/?y"
                );
                lab.client.output(&curl).unwrap();
            }
        },
        None,
    );
}

/// HTTP/2 without TLS: many streams on few connections, which are one dialogue each.
#[test]
fn http_2_in_cleartext() {
    let _guard = laboratory!();
    let directory = tempfile::Builder::new().prefix("tclab-").tempdir().unwrap();
    let root = directory.path();
    std::fs::write(root.join("index.html"), "x".repeat(3_000)).unwrap();
    let start = |host: &Host, port: u16| {
        let own = root.join(port.to_string());
        std::fs::create_dir_all(&own).unwrap();
        let (root, own) = (root.display(), own.display());
        let temporary =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|t| format!("{t}_temp_path {own}/{t};")).concat();
        let configuration = format!(
            "daemon off; master_process off; user root; pid {own}/pid; error_log {own}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; {temporary} server {{ listen {port} http2; root {root}; }} }}\n"
        );
        let file = directory.path().join(format!("{port}.conf"));
        std::fs::write(&file, configuration).unwrap();
        RealServer::custom(host, port, &format!("nginx -e {own}/error.log -c {}", file.display())).unwrap()
    };
    mirrored(
        start,
        |lab, server| {
            // Ten streams at once on each of four connections, then connections of one stream each.
            let h2load = format!("h2load -n 800 -c 4 -m 10 http://{server}/index.html");
            let report = lab.client.output(&h2load).unwrap();
            assert!(report.contains("800 succeeded"), "{report}");
            let curl = format!("curl -sS --http2-prior-knowledge -o /dev/null http://{server}/index.html");
            (0..20).for_each(|_| drop(lab.client.output(&curl).unwrap()));
        },
        None,
    );
}

/// Real gRPC: many calls under way at once, and the client closes as soon as the last is answered. A call that the
/// target gave up, because its client seemed to be gone, has left no note there.
#[test]
fn grpc_calls_under_way_at_once_before_a_close() {
    let _guard = laboratory!();
    if !python_has("grpc") {
        return lab::skip("grpc_calls_under_way_at_once_before_a_close", "Python has no grpc (python3-grpcio)");
    }
    let directory = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/grpc_notes.py");
    let notes = |port: u16| directory.path().join(port.to_string());
    let sorted = |_: &Host, port: u16| {
        let mut lines: Vec<String> =
            std::fs::read_to_string(notes(port)).unwrap_or_default().lines().map(str::to_owned).collect();
        lines.sort();
        lines.join("\n")
    };
    mirrored(
        |host, port| {
            let line = format!("{PYTHON} {script} serve {port} {}", notes(port).display());
            RealServer::custom(host, port, &line).unwrap()
        },
        |lab, server| {
            for (channels, calls) in [(4, 200), (10, 1)] {
                lab.client.output(&format!("{PYTHON} {script} burst {server} {channels} {calls}")).unwrap();
            }
            assert_eq!(sorted(&lab.source, LIVE_PORT).lines().count(), 4 * 200 + 10);
        },
        Some(&sorted),
    );
}

/// An echo service behind the upgrade of an HTTP connection; the client's frames are masked (RFC 6455, section 5.3).
#[test]
fn websocket_echo() {
    let _guard = laboratory!();
    mirrored(
        |host, port| RealServer::custom(host, port, "websocketd --port={port} --loglevel=error cat").unwrap(),
        |lab, server| {
            for connection in 0..4u8 {
                let mut talk = lab.client.run(|| Talk::to(server)).unwrap();
                talk.say(
                    format!(
                        "GET /echo HTTP/1.1\r\nHost: {server}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                    )
                    .as_bytes(),
                );
                assert!(talk.hear(1).contains("101"));
                while talk.hear(1) != "\r\n" {}
                for n in 0..50u8 {
                    let words = format!("message {n} of connection {connection}");
                    let mask = [n, connection, 0x5a, !n];
                    let mut frame = vec![0x81, 0x80 | words.len() as u8];
                    frame.extend(mask);
                    frame.extend(words.bytes().zip(mask.iter().cycle()).map(|(octet, mask)| octet ^ mask));
                    talk.say(&frame);
                    let mut echo = vec![0; 2 + words.len()];
                    std::io::Read::read_exact(&mut talk.0, &mut echo).unwrap();
                    assert_eq!(echo[2..], *words.as_bytes());
                }
            }
        },
        None,
    );
}

/// Without passwords, because a challenge would differ. Both servers begin as copies of one cluster.
#[test]
fn postgresql_with_pgbench() {
    let _guard = laboratory!();
    let cluster = Cluster::new(None).unwrap();
    let sql = |host: &Host, port: u16, words: &str| {
        let psql = format!("psql -h 127.0.0.1 -p {port} -U postgres -At -c {words} postgres");
        host.output(&psql).unwrap()
    };
    let start = |host: &Host, port: u16| {
        let server = cluster.start(host, port).unwrap();
        host.output(&format!("pgbench -i -q -h 127.0.0.1 -p {port} -U postgres postgres")).unwrap();
        server
    };
    let state = |host: &Host, port: u16| {
        ["SELECT(sum(abalance))FROM\"pgbench_accounts\"", "SELECT(sum(tbalance))FROM\"pgbench_tellers\""]
            .into_iter()
            .chain(["SELECT(count(*),sum(delta))FROM\"pgbench_history\""])
            .map(|words| sql(host, port, words))
            .collect()
    };
    mirrored(
        start,
        |lab, server| {
            let (host, port) = (server.ip(), server.port());
            for mode in ["simple", "prepared"] {
                let pgbench = format!("pgbench -n -M {mode} -c 4 -t 100 -h {host} -p {port} -U postgres postgres");
                let report = lab.client.output(&pgbench).unwrap();
                assert!(report.contains("400/400"), "{report}");
            }
        },
        Some(&state),
    );
}

#[test]
fn redis_pipelines_transactions_blocking_pops_and_subscriptions() {
    let _guard = laboratory!();
    let digest = |host: &Host, port: u16| host.output(&format!("redis-cli -p {port} DEBUG DIGEST")).unwrap();
    mirrored(
        |host, port| RealServer::redis(host, port).unwrap(),
        |lab, server| {
            let talk = || lab.client.run(|| Talk::to(server)).unwrap();
            let (mut subscriber, mut popper, mut worker) = (talk(), talk(), talk());
            subscriber.ask("SUBSCRIBE news", 6);
            for round in 0..50 {
                worker.ask("MULTI", 1);
                worker.ask(&format!("SET key:{round} {round}"), 1);
                worker.ask("INCR counter", 1);
                assert!(worker.ask("EXEC", 3).contains("*2"));
                popper.say(b"BLPOP queue 10\r\n");
                assert!(worker.ask(&format!("RPUSH queue item{round}"), 1).starts_with(':'));
                assert!(popper.hear(5).contains(&format!("item{round}")));
                worker.ask(&format!("PUBLISH news edition{round}"), 1);
                assert!(subscriber.hear(7).contains(&format!("edition{round}")));
                // A pipeline: its answers come when all of it was sent.
                worker.say("INCR counter\r\nLPUSH list x\r\n".repeat(20).as_bytes());
                assert_eq!(worker.hear(40).matches(':').count(), 40);
            }
            subscriber.say(b"UNSUBSCRIBE news\r\n");
        },
        Some(&digest),
    );
}

#[test]
fn memcached_text_and_binary() {
    let _guard = laboratory!();
    let dump = |host: &Host, port: u16| {
        let ask = || {
            let mut talk = Talk::to(SocketAddr::from(([127, 0, 0, 1], port)));
            let text: String =
                (0..100).map(|n| talk.ask(&format!("get text:{n}"), if n % 2 == 0 { 3 } else { 1 })).collect();
            let binary: String = (0..100).map(|n| talk.ask(&format!("get binary:{n}"), 3)).collect();
            text + &binary + &talk.ask("get counter", 3)
        };
        host.run(ask).unwrap()
    };
    mirrored(
        |host, port| RealServer::custom(host, port, "memcached -u root -U 0 -c 64 -p {port}").unwrap(),
        |lab, server| {
            let (mut text, mut binary) = lab.client.run(|| (Talk::to(server), Talk::to(server))).unwrap();
            text.ask("set counter 0 0 1\r\n0", 1);
            for n in 0..100 {
                let value = format!("value {n}");
                text.ask(&format!("set text:{n} 0 0 {}\r\n{value}", value.len()), 1);
                text.ask("incr counter 7", 1);
                if n % 2 == 1 {
                    text.ask(&format!("delete text:{n}"), 1);
                }
                // SET of the binary protocol: magic, opcode, lengths of key, extras and all, then flags and expiry,
                // key, value.
                let (key, value) = (format!("binary:{n}"), format!("octets {n}"));
                let mut set = vec![0x80, 0x01, 0, key.len() as u8, 8, 0, 0, 0];
                set.extend(((8 + key.len() + value.len()) as u32).to_be_bytes());
                set.extend([0; 4 + 8 + 8]);
                set.extend(key.bytes().chain(value.bytes()));
                binary.say(&set);
                let mut answer = [0; 24];
                std::io::Read::read_exact(&mut binary.0, &mut answer).unwrap();
                assert_eq!((answer[0], answer[1], answer[6], answer[7]), (0x81, 0x01, 0, 0));
            }
        },
        Some(&dump),
    );
}

/// The server speaks first, and every command waits for its answer: Python's own SMTP server and client.
#[test]
fn smtp_which_greets_first() {
    let _guard = laboratory!();
    mirrored(
        |host, port| {
            let line = "python3 -W ignore -m smtpd -n -c smtpd.DebuggingServer 0.0.0.0:{port}";
            RealServer::custom(host, port, line).unwrap()
        },
        |lab, server| {
            for letter in 0..20 {
                let mut talk = lab.client.run(|| Talk::to(server)).unwrap();
                assert!(talk.hear(1).starts_with("220"));
                for (command, code) in [
                    ("HELO lab", "250"),
                    ("MAIL FROM:<a@example.org>", "250"),
                    ("RCPT TO:<b@example.org>", "250"),
                    ("DATA", "354"),
                    (&format!("Subject: letter {letter}\r\n\r\nhello\r\n."), "250"),
                    ("QUIT", "221"),
                ] {
                    let answer = talk.ask(command, 1);
                    assert!(answer.starts_with(code), "{command}: {answer}");
                }
            }
        },
        None,
    );
}
