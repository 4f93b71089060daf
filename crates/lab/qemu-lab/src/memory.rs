//! A guest's RAM seen from outside.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::guest::PAGE;

/// Read in pieces of this size: few system calls, little memory.
const PIECE: usize = 256 * PAGE;

/// A file that holds guest memory: a QEMU's memory backend, or an image.
#[derive(Debug)]
pub struct Ram {
    file: File,
    len_bytes: u64,
}

impl Ram {
    /// Opens a RAM file or image.
    pub fn open(path: &Path) -> io::Result<Ram> {
        let file = File::open(path)?;
        let len_bytes = file.metadata()?.len();
        Ok(Ram { file, len_bytes })
    }

    /// The memory's size.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Reads memory at an offset.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Calls `each` with every page's number and content, in order.
    pub fn for_each_page(&self, mut each: impl FnMut(u64, &[u8])) -> io::Result<()> {
        self.for_each_piece(self.len_bytes, |offset, piece| {
            for (number, page) in (offset / PAGE as u64..).zip(piece.chunks(PAGE)) {
                each(number, page);
            }
            Ok(())
        })
    }

    fn for_each_piece(
        &self,
        len_bytes: u64,
        mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        let mut offset = 0;
        while offset < len_bytes {
            let len = (len_bytes - offset).min(PIECE as u64) as usize;
            let piece = &mut buffer[..len];
            self.read_at(piece, offset)?;
            each(offset, piece)?;
            offset += len as u64;
        }
        Ok(())
    }
}

/// The numbers of the pages in which two memories differ; pages that only one has count as
/// different.
pub fn compare_ram(a: &Ram, b: &Ram) -> io::Result<Vec<u64>> {
    let common = a.len_bytes.min(b.len_bytes);
    let mut different = Vec::new();
    let mut buffer = vec![0; PIECE];
    a.for_each_piece(common, |offset, piece| {
        let other = &mut buffer[..piece.len()];
        b.read_at(other, offset)?;
        // Most pieces are equal as a whole.
        if piece != other {
            let pairs = piece.chunks(PAGE).zip(other.chunks(PAGE));
            let numbers = offset / PAGE as u64..;
            different.extend(
                numbers
                    .zip(pairs)
                    .filter(|(_, (a, b))| a != b)
                    .map(|(number, _)| number),
            );
        }
        Ok(())
    })?;
    different
        .extend(common.div_ceil(PAGE as u64)..a.len_bytes.max(b.len_bytes).div_ceil(PAGE as u64));
    Ok(different)
}

#[cfg(test)]
mod tests {
    use super::{PIECE, Ram, compare_ram};
    use crate::guest::PAGE;

    #[test]
    fn differing_pages_are_numbered_across_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let one = vec![7; PIECE + 3 * PAGE];
        let mut other = one.clone();
        other[5 * PAGE] = 0;
        other[PIECE + 2 * PAGE + 100] = 0;
        other.extend([7; PAGE]);
        std::fs::write(path("one"), &one).unwrap();
        std::fs::write(path("other"), &other).unwrap();
        let (one, other) = (
            Ram::open(&path("one")).unwrap(),
            Ram::open(&path("other")).unwrap(),
        );
        let pages = (PIECE / PAGE) as u64;
        assert_eq!(
            compare_ram(&one, &other).unwrap(),
            [5, pages + 2, pages + 3]
        );
        assert!(compare_ram(&one, &one).unwrap().is_empty());
    }
}
