//! How many segments the engine handles, by the number of its sessions: `cargo bench -p tcpcopy`.

#![allow(missing_docs, reason = "criterion's macros make functions without documentation")]

mod steady;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use steady::Steady;

/// Segments of an exchange: the request in and out, the answer in, its acknowledgement out.
const SEGMENTS: u64 = 4;

fn sessions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(SEGMENTS));
    for sessions in [1, 1_000, 100_000, 1_000_000] {
        let mut steady = Steady::new(sessions);
        group.bench_function(BenchmarkId::new("segments", sessions), |bencher| {
            bencher.iter(|| assert_eq!(u64::from(black_box(steady.exchange_any())), SEGMENTS));
        });
        assert!(steady.sent() > u64::from(sessions) * 100, "nothing but the first requests was replayed");
    }
    group.finish();
}

criterion_group!(engine, sessions);
criterion_main!(engine);
