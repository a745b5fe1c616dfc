//! How many segments the engine handles, by the number of its sessions: `cargo bench -p tcpcopy`.

#![allow(missing_docs, reason = "criterion's macros make functions without documentation")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tcpcopy::memory::HugePages;
use tcpcopy_replay::testing::steady::Steady;

/// As `tcpcopy` has it.
#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

fn sessions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    for sessions in [1, 1_000, 100_000, 1_000_000] {
        let mut steady = Steady::new(sessions);
        // Three an exchange, and a fourth when the acknowledgement of the answer does not ride on the next request.
        let turns = (sessions / steady.exchanges()).max(1_000);
        let segments: u64 = (0..turns).map(|_| u64::from(steady.turn())).sum();
        group.throughput(Throughput::Elements(segments / u64::from(turns)));
        group.bench_function(BenchmarkId::new("segments", sessions), |bencher| {
            bencher.iter(|| assert!(black_box(steady.turn()) >= 3 * steady.exchanges()));
        });
        assert!(steady.sent() > u64::from(sessions) * 100, "nothing but the first requests was replayed");
    }
    group.finish();
}

criterion_group!(engine, sessions);
criterion_main!(engine);
