//! What it costs to take apart what the kernel and the other side hand over: ring records, frames of the control
//! channel, and a whole channel with and without encryption. `cargo bench -p tcpcopy --bench codec`.

#![allow(missing_docs, reason = "criterion's macros make functions without documentation")]

use std::{hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustix::event::{PollFd, PollFlags, poll};
use tcpcopy::control::{
    Accepted, Batch, Frame, Hello, Link, Listener, Psk, Refusal, Registry, Security, ServerCounters, Token, Welcome,
    connect, frame::MAX_FRAME,
};
use tcpcopy_common::{
    capture::{CaptureHeader, note},
    mark::{Epoch, MarkKey},
    response::ResponseHeader,
};
use tcpcopy_replay::{Checksums, LiveRecord};
use tokio::sync::mpsc;

/// Records of a batch: what `intercept` sends at once when it is not busy, and when it is.
const BATCHES: [usize; 3] = [1, 16, 256];

/// A ring record with so much payload, to the segment that the engine takes: where the kernel has verified the checksum
/// (`record`), and where that is left to the parser (`checksum`).
fn parser(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parser");
    group.throughput(Throughput::Elements(1));
    for payload in [0usize, 100, 1_448, 65_000] {
        for (name, notes) in [("record", note::VERIFIED), ("checksum", 0)] {
            let header = CaptureHeader { payload_len: payload as u32, notes, ..bytemuck::Zeroable::zeroed() };
            let mut record = bytemuck::bytes_of(&header).to_vec();
            // A TCP header without options.
            record.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5 << 4, 0, 0, 0, 0, 0, 0, 0]);
            record.resize(record.len() + payload, 7);
            group.bench_function(BenchmarkId::new(name, payload), |bencher| {
                bencher.iter(|| {
                    let Ok(LiveRecord::Segment(segment)) = LiveRecord::parse(black_box(&record), Checksums::Complete)
                    else {
                        panic!("a record that is whole is refused")
                    };
                    assert_eq!(black_box(segment).payload.len(), payload);
                });
            });
        }
    }
    group.finish();
}

fn headers(count: usize) -> Vec<ResponseHeader> {
    (0..count as u32)
        .map(|n| ResponseHeader { seq: n.to_be_bytes(), payload_len: n, instance: 1, ..bytemuck::Zeroable::zeroed() })
        .collect()
}

fn collect(headers: &[ResponseHeader], batch: &mut Batch) {
    batch.clear();
    for &header in headers {
        assert!(batch.push(&header.into()), "a batch that is not full");
    }
}

/// Frames of response headers, collected and encoded as the report thread does it, and decoded, without a channel.
fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    for count in BATCHES {
        let headers = headers(count);
        let mut batch = Batch::new();
        group.throughput(Throughput::Elements(count as u64));
        let mut octets = Vec::with_capacity(MAX_FRAME);
        group.bench_function(BenchmarkId::new("collect", count), |bencher| {
            bencher.iter(|| collect(black_box(&headers), &mut batch));
        });
        collect(&headers, &mut batch);
        group.bench_function(BenchmarkId::new("encode", count), |bencher| {
            bencher.iter(|| {
                octets.clear();
                Frame::Responses(batch.responses()).encode(&mut octets).expect("a frame that fits");
            });
        });
        group.bench_function(BenchmarkId::new("decode", count), |bencher| {
            bencher.iter(|| {
                let Ok(Frame::Responses(responses)) = Frame::decode(black_box(&octets)) else {
                    panic!("another frame")
                };
                assert_eq!(responses.iter().map(black_box).count(), count);
            });
        });
    }
    group.finish();
}

/// A batch from one end of an established channel to the other, over loopback: queue, flush, wait, receive. With a key
/// it is sealed and opened on the way; what that costs is the difference.
fn channel(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("channel");
    let key = Psk::generate().expect("random octets");
    for (name, security) in [("plain", Security::Insecure), ("noise", key.into())] {
        let (mut client, mut server) = links(&security);
        for count in BATCHES {
            let headers = headers(count);
            let mut batch = Batch::new();
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| {
                    collect(&headers, &mut batch);
                    server.send(&Frame::Responses(batch.responses())).map(drop).expect("an open channel");
                    assert!(server.flush().expect("an open channel"), "the socket is full");
                    let mut received = 0;
                    while received < count {
                        poll(&mut [PollFd::new(&client, PollFlags::IN)], None).expect("a socket");
                        let take = |frame: Frame<'_>| {
                            if let Frame::Responses(responses) = frame {
                                received += responses.iter().map(black_box).count();
                            }
                        };
                        client.receive(take).expect("an open channel");
                    }
                    assert_eq!(received, count);
                });
            });
        }
    }
    group.finish();
}

/// Lets everybody in.
struct Door(mpsc::UnboundedSender<Accepted>);

impl Registry for Door {
    fn register(&self, _: &Hello, _: std::net::SocketAddr) -> Result<Welcome, Refusal> {
        Ok(Welcome { instance: 1, key: MarkKey { k0: 1, k1: 2 }, epoch: Epoch(0), token: Token([3; 16]) })
    }

    fn established(&self, accepted: Accepted) {
        // Nobody waits any more when the benchmark is over.
        let _ = self.0.send(accepted);
    }
}

/// Both ends of a channel: the client's and the server's.
fn links(security: &Security) -> (Link, Link) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (sender, mut accepted) = mpsc::unbounded_channel();
        let listener = Listener::bind(&["127.0.0.1:0".parse().expect("an address")], security.clone()).expect("a port");
        let address = listener.local_addresses().expect("an address")[0];
        let server = tokio::spawn(listener.run(Arc::new(Door(sender)), Arc::<ServerCounters>::default()));
        let client = connect(address, security, &Hello::new(0, None, "bench")).await.expect("a channel");
        let accepted = accepted.recv().await.expect("the server's end");
        server.abort();
        (client.link, accepted.link)
    })
}

criterion_group!(codec, parser, frames, channel);
criterion_main!(codec);
