//! Memory from a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::guests::content::Content;

/// The content of a file. Guest memory after the end of the file is zero.
#[derive(Debug)]
pub(super) struct Image {
    pub file: File,
    /// The size of the guest's memory.
    pub bytes: u64,
}

impl Content for Image {
    fn pieces(&self) -> u64 {
        self.bytes.div_ceil(PIECE_BYTES)
    }

    fn make(&self, index: u64, piece: &mut Vec<u8>) -> io::Result<u64> {
        let offset = index * PIECE_BYTES;
        piece.resize(PIECE_BYTES.min(self.bytes - offset) as usize, 0);
        let mut read = 0;
        while let Some(rest) = piece.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(offset)
    }
}

const PIECE_BYTES: u64 = 1 << 20;
