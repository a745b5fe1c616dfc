//! What it costs to read records that the capture program has written: a real ring, filled by real segments of a
//! connection over loopback. `cargo bench -p tcpcopy --bench ring`, as root.

#![allow(missing_docs, reason = "criterion's macros make functions without documentation")]

use std::{
    hint::black_box,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tcpcopy::bpf::{Capture, CaptureRule, CaptureSetup, Hook, RingReader};
use tcpcopy_replay::{Checksums, LiveRecord};

/// Segments between two readings, as if the worker had been busy meanwhile.
const BATCHES: [usize; 2] = [1, 256];
const PAYLOAD: usize = 100;

/// A captured connection over loopback.
struct Traffic {
    client: TcpStream,
    server: TcpStream,
    ring: RingReader,
    _capture: Capture,
}

impl Traffic {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let service = listener.local_addr().expect("an address");
        let rules = [CaptureRule { id: 0, address: Some(service.ip()), port: service.port() }];
        let setup = CaptureSetup {
            rules: &rules,
            exclude: &[],
            clients: None,
            sampling: None,
            handshakes: false,
            promiscuous: false,
            workers: 1,
            ring_bytes: 16 << 20,
            interfaces: &["lo".to_owned()],
            hook: Hook::Tc,
            debug: false,
        };
        let (mut capture, mut readers) = Capture::load(&setup).expect("programs that load");
        capture.attach().expect("a hook");
        let client = TcpStream::connect(service).expect("a connection");
        client.set_nodelay(true).expect("a socket");
        let server = listener.accept().expect("a connection").0;
        Self { client, server, ring: readers.remove(0), _capture: capture }
    }

    /// Sends segments and waits until the server has them, and so until they are captured.
    fn send(&mut self, segments: usize) {
        let mut payload = [b'x'; PAYLOAD];
        for _ in 0..segments {
            self.client.write_all(&payload).expect("an open connection");
            self.server.read_exact(&mut payload).expect("an open connection");
        }
    }

    /// Reads everything; how many segments with payload it were, and how long that took.
    fn read(&mut self) -> (u64, Duration) {
        let mut segments = 0;
        let began = Instant::now();
        self.ring.drain(usize::MAX, |record| {
            match LiveRecord::parse(record, Checksums::Partial).expect("a record that is whole") {
                LiveRecord::Segment(segment) => segments += u64::from(!black_box(segment).payload.is_empty()),
                LiveRecord::Answer(_) => {}
            }
        });
        (segments, began.elapsed())
    }
}

fn ring(criterion: &mut Criterion) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP ring: loading eBPF programs needs root");
        return;
    }
    let mut traffic = Traffic::start();
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(1));
    // Filling the ring takes a hundred times as long as reading it.
    group.measurement_time(Duration::from_millis(100)).warm_up_time(Duration::from_millis(20)).sample_size(30);
    for batch in BATCHES {
        group.bench_function(BenchmarkId::new("record", batch), |bencher| {
            bencher.iter_custom(|records| {
                traffic.send(0);
                traffic.read();
                let (mut seen, mut time) = (0, Duration::ZERO);
                while seen < records {
                    traffic.send(batch.min((records - seen) as usize));
                    let (segments, elapsed) = traffic.read();
                    assert!(segments > 0, "nothing was captured");
                    (seen, time) = (seen + segments, time + elapsed);
                }
                assert_eq!(seen, records, "segments were lost or came twice");
                time
            });
        });
    }
    group.finish();
}

criterion_group!(reader, ring);
criterion_main!(reader);
