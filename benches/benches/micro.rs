//! Time per event of each step of the hot path.

use criterion::{Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for mut step in benches::steps::all() {
        let mut group = criterion.benchmark_group("step");
        group.throughput(Throughput::Elements(step.events));
        group.bench_function(step.name, |bencher| bencher.iter(&mut step.run));
        group.finish();
    }
    criterion.final_summary();
}
