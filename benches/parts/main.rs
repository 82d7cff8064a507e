//! Benchmarks of the parts: `cargo bench -p consort-benches`. Each also runs once as a test (`cargo xtask bench-test`), and
//! checks that what it did came out right.
#![allow(missing_docs, reason = "criterion's macros make a public function")]

mod engine;
mod fabrics;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
}

criterion_group! {
    name = parts;
    config = short();
    targets = engine::one_message, engine::batches, engine::guarantees, engine::headers, fabrics::one_message, fabrics::batches
}
criterion_main!(parts);
