//! Decodes payloads to pages, packet by packet, like one channel in the middle of a migration.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use multifd_benches::{PAGE_SIZE, corpora, criterion};
use multifd_codec::{Pages, Settings, decoder, encoder};
use multifd_wire::Method;

fn decode(criterion: &mut Criterion) {
    for method in [Method::None, Method::Zlib, Method::Zstd] {
        let mut group = criterion.benchmark_group(format!("decode/{method}"));
        for corpus in corpora() {
            group.throughput(Throughput::Bytes(corpus.bytes.len() as u64));
            let pages = Pages::private(&corpus.bytes, PAGE_SIZE).unwrap();
            group.bench_function(corpus.name, |bench| {
                // Both ends of one stream advance together; only the receiving one is timed.
                let mut encoder = encoder(method, &Settings::default()).unwrap();
                let mut decoder = decoder(method, &Settings::default()).unwrap();
                let mut arrived = vec![0; corpus.bytes.len()];
                bench.iter_batched(
                    || {
                        let mut payload = Vec::new();
                        encoder.encode(&pages, &mut payload).unwrap();
                        payload
                    },
                    |payload| {
                        decoder.decode(&payload, PAGE_SIZE, &mut arrived).unwrap();
                        payload
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = criterion();
    targets = decode
}
criterion_main!(benches);
