//! The payload of the methods `qpl` and `uadk`: a table of page lengths, then the pages in
//! sequence.
//!
//! The table has one 4-byte big-endian length per normal page. A page as long as the page size is
//! uncompressed; a shorter one is a separate raw deflate stream (`qpl`, RFC 1951) or zlib stream
//! (`uadk`, RFC 1950). QEMU 9.1 and later; a page longer than the page size makes QEMU abort.

use alloc::vec::Vec;

use crate::fault::Fault;
use crate::page_size::PageSize;

/// One page of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a page is compressed or raw, and the format fixes it"
)]
pub enum PageData<'a> {
    /// The uncompressed page, as long as a page.
    Raw(&'a [u8]),
    /// The compressed page, shorter than a page and not empty.
    Compressed(&'a [u8]),
}

impl<'a> PageData<'a> {
    /// The page's bytes in the payload.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Raw(bytes) | Self::Compressed(bytes) => bytes,
        }
    }
}

/// The pages of a payload with a valid length table. Made by [`parse`].
#[derive(Debug, Clone)]
pub struct PageIter<'a> {
    lengths: core::slice::Iter<'a, [u8; LENGTH_LEN]>,
    data: &'a [u8],
    page_size: PageSize,
}

/// Parses a payload of `pages` pages. The whole table is checked before the first page is returned.
///
/// # Errors
/// [`Fault::LengthTable`] if the payload is shorter than the table, [`Fault::PageLength`] if a page
/// is empty or longer than a page, [`Fault::LengthSum`] if the sum of the pages differs from the
/// length of the data after the table.
pub fn parse(payload: &[u8], pages: usize, page_size: PageSize) -> Result<PageIter<'_>, Fault> {
    let needed = pages.saturating_mul(LENGTH_LEN);
    let (table, data) = payload.split_at_checked(needed).ok_or(Fault::LengthTable {
        found: payload.len(),
        needed,
    })?;
    let (lengths, _) = table.as_chunks();
    let mut sum = 0_usize;
    for (page, length) in lengths.iter().enumerate() {
        let found = u32::from_be_bytes(*length);
        check_length(page, found as usize, page_size)?;
        sum = sum.saturating_add(found as usize);
    }
    if sum != data.len() {
        return Err(Fault::LengthSum {
            found: sum,
            allowed: data.len(),
        });
    }
    Ok(PageIter {
        lengths: lengths.iter(),
        data,
        page_size,
    })
}

/// Appends a payload to `out`: the table, then the pages.
///
/// # Errors
/// [`Fault::PageLength`] if a raw page is not as long as a page, or a compressed one is empty or
/// not shorter. Nothing is written then.
pub fn write(pages: &[PageData<'_>], page_size: PageSize, out: &mut Vec<u8>) -> Result<(), Fault> {
    for (page, data) in pages.iter().enumerate() {
        let found = data.bytes().len();
        check_length(page, found, page_size)?;
        if matches!(data, PageData::Raw(_)) != (found == page_size.bytes()) {
            return Err(page_length(page, found, page_size));
        }
    }
    for data in pages {
        // At most the page size, as checked above.
        out.extend_from_slice(&(data.bytes().len() as u32).to_be_bytes());
    }
    for data in pages {
        out.extend_from_slice(data.bytes());
    }
    Ok(())
}

impl<'a> Iterator for PageIter<'a> {
    type Item = PageData<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_be_bytes(*self.lengths.next()?) as usize;
        let (bytes, rest) = self.data.split_at_checked(length)?;
        self.data = rest;
        Some(if length == self.page_size.bytes() {
            PageData::Raw(bytes)
        } else {
            PageData::Compressed(bytes)
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.lengths.size_hint()
    }
}

impl ExactSizeIterator for PageIter<'_> {}

fn check_length(page: usize, found: usize, page_size: PageSize) -> Result<(), Fault> {
    if found == 0 || found > page_size.bytes() {
        return Err(page_length(page, found, page_size));
    }
    Ok(())
}

fn page_length(page: usize, found: usize, page_size: PageSize) -> Fault {
    let most = page_size.bytes();
    Fault::PageLength { page, found, most }
}

/// Bytes of one length in the table.
const LENGTH_LEN: usize = size_of::<u32>();
