//! What it costs to send, down to the receiving end of a veth pair: `cargo bench -p tcpcopy --bench inject`, as root.

#![allow(missing_docs, reason = "criterion's macros make functions without documentation")]

use std::{process::Command, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tcpcopy::inject::{Backend, Injector, Paths, Sending};
use tcpcopy_common::{flow::Flow, tcp_flags};
use tcpcopy_replay::{Transmit, TransmitOptions};

const TARGET: [u8; 4] = [10, 77, 0, 2];
const SEGMENT: u16 = 1448;

/// Moves this thread into a network namespace of its own, with a veth pair whose far end drops what it receives.
fn sink() -> bool {
    if rustix::process::geteuid().as_raw() != 0 {
        eprintln!("SKIP: a network namespace takes root");
        return false;
    }
    // SAFETY: no memory is involved; the threads that the benchmark starts later inherit the namespace.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
    for words in [
        "link add v0 type veth peer name v1",
        "addr add 10.77.0.1/24 dev v0",
        "link set v0 up",
        "link set v1 up",
        "neigh replace 10.77.0.2 lladdr 02:00:00:00:77:02 dev v0 nud permanent",
    ] {
        let status = Command::new("ip").args(words.split(' ')).status().expect("iproute2 is installed");
        assert!(status.success(), "ip {words}");
    }
    true
}

fn sending(criterion: &mut Criterion) {
    if !sink() {
        return;
    }
    let client = (std::net::IpAddr::from([192, 0, 2, 7]).into(), [0x9c, 0x40]);
    let flow = Flow::tcp(client, (std::net::IpAddr::from(TARGET).into(), [0, 80]));
    let payload = vec![7; 64_000];
    for (name, backend, bypass_qdisc) in [
        ("packet", Backend::Packet, false),
        ("packet past the qdisc", Backend::Packet, true),
        ("raw", Backend::Raw, false),
    ] {
        let paths = Arc::new(Paths::open(backend, &[TARGET.into()]).expect("there is a route"));
        let mut injector =
            Injector::open(Arc::clone(&paths), Sending { batch: 64, bypass_qdisc }).expect("sockets can be opened");
        let mut group = criterion.benchmark_group(format!("inject/{name}"));
        for size in [0, 100, 1448, 14_480, 62_264] {
            group.throughput(Throughput::Bytes(size as u64));
            let transmit = Transmit {
                flow,
                seq: 1,
                ack: 1,
                window: 500,
                flags: tcp_flags::ACK | tcp_flags::PSH,
                options: TransmitOptions { syn: None, timestamps: Some((1, 2)) },
                segment_size: SEGMENT,
                payload: &payload[..size],
            };
            // Batches fill as in a worker that is busy; what a flush after each costs is the case of one that is not.
            group
                .bench_function(BenchmarkId::new("batched", size), |bencher| bencher.iter(|| injector.push(&transmit)));
            injector.flush();
            group.bench_function(BenchmarkId::new("alone", size), |bencher| {
                bencher.iter(|| {
                    injector.push(&transmit);
                    injector.flush();
                });
            });
        }
        group.finish();
        assert_eq!(injector.stats().discarded(), 0, "{:?}", injector.stats());
    }
}

criterion_group!(inject, sending);
criterion_main!(inject);
