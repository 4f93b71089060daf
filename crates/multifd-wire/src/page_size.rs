//! The guest's page size, and the number of pages in a packet.

use core::fmt;

/// Bytes of guest memory in one full RAM packet: QEMU gathers 512 KiB of pages of any size (all
/// QEMUs since 4.0).
pub const PACKET_BYTES: usize = 512 * 1024;

/// A guest's page size in bytes: a power of two from 1 KiB to 64 KiB.
///
/// This is the *target* page size of the emulated machine, not the host's: 4 KiB for x86, Arm
/// `virt`, RISC-V, ppc64 and s390x, 8 KiB for sparc64 and alpha. It determines the length of every
/// RAM packet's header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize {
    bytes: u32,
}

/// The number is not a page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{found} bytes is no page size: it must be a power of two from {} to {}", PageSize::MIN.bytes, PageSize::MAX.bytes)]
#[non_exhaustive]
pub struct PageSizeError {
    found: u32,
}

impl PageSize {
    /// 1 KiB, the smallest page of all machines that QEMU emulates (Arm before version 7).
    pub const MIN: Self = Self { bytes: 1 << 10 };
    /// 4 KiB, the page size of most machines.
    pub const K4: Self = Self { bytes: 4 << 10 };
    /// 64 KiB, the largest page this crate accepts.
    pub const MAX: Self = Self { bytes: 64 << 10 };

    /// Makes a page size of `bytes`.
    ///
    /// # Errors
    /// If `bytes` is not a power of two from 1 KiB to 64 KiB.
    pub const fn new(bytes: u32) -> Result<Self, PageSizeError> {
        if bytes.is_power_of_two() && bytes >= Self::MIN.bytes && bytes <= Self::MAX.bytes {
            Ok(Self { bytes })
        } else {
            Err(PageSizeError { found: bytes })
        }
    }

    /// The page size at which a full packet carries `pages` pages; `None` if there is none.
    #[must_use]
    pub(crate) fn from_pages_per_packet(pages: usize) -> Option<Self> {
        let bytes = PACKET_BYTES.checked_div(pages)?;
        let size = Self::new(u32::try_from(bytes).ok()?).ok()?;
        // The division may have lost a remainder.
        (size.pages_per_packet() == pages).then_some(size)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Pages in a full packet, which is also the number of entries in every RAM packet's table of
    /// offsets: from 8 (64 KiB pages) to 512 (1 KiB pages).
    #[must_use]
    #[expect(clippy::arithmetic_side_effects, reason = "a page size is never zero")]
    pub const fn pages_per_packet(self) -> usize {
        PACKET_BYTES / self.bytes()
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSize({})", self.bytes)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_powers_of_two_and_nothing_else() {
        for bytes in [1024, 2048, 4096, 8192, 16384, 32768, 65536] {
            let size = PageSize::new(bytes).unwrap();
            assert_eq!(size.bytes(), bytes as usize);
            assert_eq!(size.pages_per_packet() * size.bytes(), PACKET_BYTES);
            assert_eq!(
                PageSize::from_pages_per_packet(size.pages_per_packet()),
                Some(size)
            );
        }
        for bytes in [0, 1, 512, 4095, 4097, 12288, 131_072, u32::MAX] {
            assert_eq!(PageSize::new(bytes), Err(PageSizeError { found: bytes }));
        }
        for pages in [0, 1, 4, 9, 127, 129, 1024, usize::MAX] {
            assert_eq!(PageSize::from_pages_per_packet(pages), None);
        }
    }

    #[test]
    fn header_tables_have_the_sizes_seen_on_real_machines() {
        assert_eq!(PageSize::K4.pages_per_packet(), 128);
        assert_eq!(PageSize::new(8192).unwrap().pages_per_packet(), 64);
    }
}
