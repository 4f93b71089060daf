//! Pages to payload, a packet at a time, as one channel does it in the middle of a migration.

use std::ptr::NonNull;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use multifd_benches::{PAGE_SIZE, corpora, criterion};
use multifd_codec::{GuestPage, Pages, Settings, encoder};
use multifd_wire::Method;

fn encode(criterion: &mut Criterion) {
    for method in [Method::None, Method::Zlib, Method::Zstd] {
        let mut group = criterion.benchmark_group(format!("encode/{method}"));
        for corpus in corpora() {
            group.throughput(Throughput::Bytes(corpus.bytes.len() as u64));
            let pages = Pages::private(&corpus.bytes, PAGE_SIZE).unwrap();
            group.bench_function(corpus.name, |bench| {
                let mut encoder = encoder(method, &Settings::default()).unwrap();
                let mut payload = Vec::new();
                bench.iter(|| encoder.encode(&pages, &mut payload).unwrap());
            });
        }
    }
}

/// The copy out of live guest memory that comes before every compression, from scattered pages.
fn gather(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gather");
    for (name, guest_bytes) in [("from cache", 1 << 20), ("from memory", 256 << 20)] {
        let guest = vec![0x5au64; guest_bytes / 8];
        let pages: Vec<GuestPage<'_>> = guest
            .chunks(PAGE_SIZE.bytes() / 8)
            .map(|page| {
                // SAFETY: the page is inside `guest`, whose words are aligned and which outlives
                // the handles unchanged.
                unsafe { GuestPage::new(NonNull::from(page).cast(), PAGE_SIZE) }
            })
            .collect();
        let per_packet = PAGE_SIZE.pages_per_packet();
        group.throughput(Throughput::Bytes((PAGE_SIZE.bytes() * per_packet) as u64));
        group.bench_function(name, |bench| {
            let mut packets = pages.chunks_exact(per_packet).cycle();
            let mut scratch = Vec::new();
            bench.iter(|| {
                let pages = packets.next().unwrap();
                Pages::guest(pages, PAGE_SIZE)
                    .unwrap()
                    .gather(&mut scratch)
                    .len()
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = criterion();
    targets = encode, gather
}
criterion_main!(benches);
