//! Pages of guests, from files or generated.

use std::io::{self, Read as _};
use std::path::Path;

use multifd_bench::guests::{Kind, Spec, fill_memory};

use crate::guest::PAGE;

/// Returns the used memory of a generated guest, `idle` or `redis`; `noise`, which nothing
/// compresses; or a file of pages back to back, uncompressed or compressed with zstd.
///
/// # Errors
/// If the file cannot be read, has a partial page, or is empty.
pub fn guest_pages(source: &str) -> io::Result<Vec<[u8; PAGE]>> {
    let (kind, memory_mib) = match source {
        "idle" => (Kind::Idle, IDLE_MIB),
        "redis" => (Kind::Redis, REDIS_MIB),
        "noise" => return Ok(noise()),
        file => return read_pages(Path::new(file)),
    };
    let mut memory = tempfile::tempfile()?;
    memory.set_len(memory_mib << 20)?;
    fill_memory(&memory, &Spec::new(kind, memory_mib << 20))?;
    let mut pages = Vec::new();
    let mut page = [0; PAGE];
    for _ in 0..(memory_mib << 20) / PAGE as u64 {
        memory.read_exact(&mut page)?;
        if page != [0; PAGE] {
            pages.push(page);
        }
    }
    Ok(pages)
}

/// As many pages as of the others.
fn noise() -> Vec<[u8; PAGE]> {
    let mut state = 1_u64;
    let mut page = || {
        let mut page = [0; PAGE];
        for word in page.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        page
    };
    (0..8192).map(|_| page()).collect()
}

/// A fifth of the first and a third of the second is in use: some 8000 pages each.
const IDLE_MIB: u64 = 160;
const REDIS_MIB: u64 = 96;

fn read_pages(path: &Path) -> io::Result<Vec<[u8; PAGE]>> {
    let place =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let file = std::fs::read(path).map_err(place)?;
    let bytes = if file.starts_with(&ZSTD_MAGIC) {
        zstd_whole(&file).map_err(place)?
    } else {
        file
    };
    let (pages, rest) = bytes.as_chunks();
    if pages.is_empty() || !rest.is_empty() {
        let wrong = format!("{} bytes are not whole pages of {PAGE}", bytes.len());
        return Err(place(io::Error::new(io::ErrorKind::InvalidData, wrong)));
    }
    Ok(pages.to_vec())
}

/// Decompresses all frames of a file.
fn zstd_whole(file: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = zstd_safe::DCtx::create();
    let mut input = zstd_safe::InBuffer::around(file);
    let mut bytes = Vec::new();
    loop {
        bytes.reserve(1 << 20);
        let room = bytes.capacity();
        let filled = bytes.len();
        let mut output = zstd_safe::OutBuffer::around_pos(&mut bytes, filled);
        let missing = stream
            .decompress_stream(&mut output, &mut input)
            .map_err(|code| io::Error::other(zstd_safe::get_error_name(code)))?;
        if input.pos() == file.len() && bytes.len() < room {
            // A truncated file may end at the end of a page.
            return match missing {
                0 => Ok(bytes),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }
}

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[cfg(test)]
mod tests {
    use super::{PAGE, guest_pages, read_pages};

    #[test]
    fn pages_are_read_compressed_or_not() {
        let pages: Vec<u8> = (0..3 * PAGE)
            .map(|at| (at / PAGE + at % 251) as u8)
            .collect();
        let mut compressed = vec![0; 4 * PAGE];
        let len = zstd_safe::compress(&mut compressed[..], &pages, 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pages");
        for bytes in [&pages[..], &compressed[..len]] {
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(read_pages(&file).unwrap().as_flattened(), pages);
        }
        std::fs::write(&file, &pages[1..]).unwrap();
        assert!(read_pages(&file).is_err());
        // Two frames of whole pages; the second is truncated.
        let twice = [&compressed[..len], &compressed[..len]].concat();
        std::fs::write(&file, &twice).unwrap();
        assert_eq!(read_pages(&file).unwrap().len(), 6);
        for kept in len + 1..twice.len() {
            std::fs::write(&file, &twice[..kept]).unwrap();
            assert!(read_pages(&file).is_err(), "{kept} of {}", twice.len());
        }
    }

    #[test]
    fn made_guests_have_pages() {
        for kind in ["idle", "redis"] {
            let pages = guest_pages(kind).unwrap();
            assert!(
                (6000..12000).contains(&pages.len()),
                "{kind}: {}",
                pages.len()
            );
        }
    }
}
