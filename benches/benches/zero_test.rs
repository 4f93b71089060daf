//! The zero-page test, page by page over a packet's pages. A page with content is left early, so
//! only `zero` shows the speed of memory.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use multifd_benches::{PAGE_SIZE, corpora, criterion};
use multifd_codec::is_zero;

fn zero_test(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("zero_test");
    for corpus in corpora() {
        group.throughput(Throughput::Bytes(corpus.bytes.len() as u64));
        group.bench_function(corpus.name, |bench| {
            let pages = corpus.bytes.chunks(PAGE_SIZE.bytes());
            bench.iter(|| pages.clone().filter(|page| is_zero(page)).count());
        });
    }
    // Larger than the caches, as a guest is, and written once: untouched memory is one zero page
    // many times over.
    let mut guest = vec![1; 256 << 20];
    guest.fill(black_box(0));
    group
        .sample_size(10)
        .throughput(Throughput::Bytes(guest.len() as u64));
    group.bench_function("zero from memory", |bench| {
        let pages = guest.chunks(PAGE_SIZE.bytes());
        bench.iter(|| pages.clone().filter(|page| is_zero(page)).count());
    });
}

criterion_group! {
    name = benches;
    config = criterion();
    targets = zero_test
}
criterion_main!(benches);
