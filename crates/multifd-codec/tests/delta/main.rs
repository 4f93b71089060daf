//! Pages that are sent again, between two ends.

mod channels;
mod in_place;
mod lies;
mod memory;
mod round_trips;

use std::sync::Arc;

use multifd_codec::delta::{
    Counts, Decoder, DeltaError, Encoder, Kept, Sent, memory::Share, slots,
};
use multifd_codec::{PageBuffer, Settings, decoder};
use multifd_wire::{BlockName, Method, PageSize, RamPacket};
use testkit::allocations::Counting;
use testkit::pages::Random;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// All methods that this crate has.
const METHODS: [Method; 5] = [
    Method::None,
    Method::Zlib,
    Method::Zstd,
    Method::Qpl,
    Method::Canned,
];

/// The words of a decoder that has failed before.
const POISONED: &str = "the stream of differences ended at an earlier error";

fn is_wrong_digest(error: &DeltaError) -> bool {
    let words = "the pages made from differences have digest ";
    error.to_string().starts_with(words)
}

/// The shares of both ends.
fn ends(bytes: u64) -> (Arc<Sent>, Arc<Kept>) {
    let (here, there) = (Share::take(bytes), Share::take(bytes));
    assert_eq!((here.bytes(), there.bytes()), (bytes, bytes));
    (Arc::new(Sent::new(here)), Arc::new(Kept::new(there)))
}

/// A budget for exactly this many slots.
fn budget(count: u32, page_size: PageSize) -> u64 {
    let mut bytes = u64::from(count) * page_size.bytes() as u64;
    while slots(bytes, page_size) < count {
        bytes += 1;
    }
    bytes
}

fn writer(method: Method, sent: &Arc<Sent>) -> Encoder {
    let inner = multifd_codec::Encoder::new(method, &Settings::default()).unwrap();
    Encoder::new(inner, Some(sent.clone()))
}

fn reader(method: Method, kept: &Arc<Kept>) -> Decoder {
    let inner = decoder(method, &Settings::default()).unwrap();
    Decoder::new(inner, Some(kept.clone()))
}

/// A packet of a block with these numbers of normal and zero pages.
fn packet(block: &str, page_size: PageSize, normal: &[u64], zero: &[u64]) -> RamPacket {
    let size = page_size.bytes() as u64;
    let offsets = |numbers: &[u64]| numbers.iter().map(|page| page * size).collect::<Vec<_>>();
    let block = BlockName::new(block.as_bytes()).unwrap();
    RamPacket::new(page_size, block, &offsets(normal), &offsets(zero), 0).unwrap()
}

/// Sends a packet on its way: its header as it is on the wire, and the payload.
fn encode(
    encoder: &mut Encoder,
    packet: RamPacket,
    pages: &[u8],
    epoch: u64,
) -> (RamPacket, Vec<u8>) {
    let mut payload = Vec::new();
    encoder.push(pages.to_vec().into(), epoch, packet);
    let (_, mut packet) = encoder.pop(&mut payload).unwrap().unwrap();
    packet
        .set_payload(encoder.packet_method(), payload.len() as u32)
        .unwrap();
    (packet, payload)
}

fn decode(
    decoder: &mut Decoder,
    packet: &RamPacket,
    payload: &[u8],
) -> Result<Vec<u8>, DeltaError> {
    let mut pages = PageBuffer::default();
    let page_size = packet.page_size().unwrap();
    pages
        .space(packet.normal().len() * page_size.bytes())
        .fill(0xa5);
    decoder.decode(&mut payload.to_vec(), packet, &mut pages, &|| false)?;
    Ok(pages.into())
}

/// A page that looks like others of its kind, and is incompressible in part.
fn page(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random::new(seed + 1);
    let half = bytes / 2;
    (0..bytes)
        .map(|at| match at < half {
            true => (at / 16) as u8,
            false => random.byte(),
        })
        .collect()
}

/// Changes a few bytes.
fn touch(random: &mut Random, page: &mut [u8]) {
    for _ in 0..1 + random.below(4) {
        let start = random.below(page.len());
        let end = page.len().min(start + 1 + random.below(9));
        page[start..end]
            .iter_mut()
            .for_each(|byte| *byte = random.byte());
    }
}

fn whole(counts: &Counts) -> u64 {
    counts.kept + counts.passed
}
