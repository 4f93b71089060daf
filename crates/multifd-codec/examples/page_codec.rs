//! Pages to payload and back, with the codec crate alone.
//!
//!     cargo run --release -p multifd-codec --example page_codec [none|zlib|zstd|qpl|canned] [FILE]
//!
//! FILE is taken as memory, a packet's worth of 4 KiB pages at a time; without it, some pages are
//! made up.

use std::error::Error;

use multifd_codec::{Pages, Settings, decoder, encoder, is_zero};
use multifd_wire::{Method, PageSize};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let method: Method = arguments.next().as_deref().unwrap_or("zlib").parse()?;
    let memory = match arguments.next() {
        Some(path) => std::fs::read(path)?,
        None => made_up_memory(),
    };
    there_and_back(method, &memory)
}

fn there_and_back(method: Method, memory: &[u8]) -> Result<(), Box<dyn Error>> {
    let page_size = PageSize::K4;
    let (pages, _) = memory.as_chunks::<{ PageSize::K4.bytes() }>();
    let normal: Vec<u8> = pages
        .iter()
        .filter(|page| !is_zero(*page))
        .flatten()
        .copied()
        .collect();
    println!(
        "{} pages, {} of them zero",
        pages.len(),
        pages.len() - normal.len() / page_size.bytes()
    );

    // One of each for a channel: they keep the stream from packet to packet.
    let mut encoder = encoder(method, &Settings::default())?;
    let mut decoder = decoder(method, &Settings::default())?;
    let mut payload = Vec::new();
    let mut payload_bytes = 0;
    for packet in normal.chunks(page_size.bytes() * page_size.pages_per_packet()) {
        encoder.encode(&Pages::private(packet, page_size)?, &mut payload)?;
        payload_bytes += payload.len();

        let mut arrived = vec![0; packet.len()];
        decoder.decode(&payload, page_size, &mut arrived)?;
        assert!(arrived == packet);
    }
    println!(
        "{} bytes of pages in {payload_bytes} bytes of {method} payload, and back",
        normal.len()
    );
    Ok(())
}

fn made_up_memory() -> Vec<u8> {
    (0..1000)
        .flat_map(|page| {
            let line = format!("page {page} of a guest's memory\n");
            let content = if page % 3 == 0 {
                vec![0]
            } else {
                line.into_bytes()
            };
            content.into_iter().cycle().take(PageSize::K4.bytes())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_goes_there_and_back() {
        let memory = made_up_memory();
        for method in ["none", "zlib", "zstd", "qpl", "canned"] {
            let method: Method = method.parse().unwrap();
            if method != Method::Zstd || cfg!(feature = "zstd") {
                there_and_back(method, &memory).unwrap();
            }
        }
    }
}
