//! One bit for each page of a RAM block.

use std::ops::Range;

use multifd_wire::PageSize;

/// The pages of a RAM block that are to be sent: all that an engine keeps for each page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmap {
    words: Vec<u64>,
    pages: usize,
    page_size: PageSize,
}

impl DirtyBitmap {
    /// An empty bitmap of a block of `len_bytes`. A last page that is not whole has a bit too.
    #[must_use]
    pub fn new(len_bytes: usize, page_size: PageSize) -> Self {
        let pages = len_bytes.div_ceil(page_size.bytes());
        Self {
            words: vec![0; pages.div_ceil(WORD_BITS)],
            pages,
            page_size,
        }
    }

    /// The block's number of pages.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.pages
    }

    /// The size of each.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Puts every page in.
    pub(crate) fn insert_all(&mut self) {
        self.insert_pages(0..self.pages);
    }

    /// Puts the pages in which the bytes lie in; those beyond the block's end do not count.
    pub fn insert_bytes(&mut self, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        let page_bytes = self.page_size.bytes() as u64;
        let page = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX);
        let first = page(bytes.start / page_bytes);
        let end = page(bytes.end.div_ceil(page_bytes)).min(self.pages);
        self.insert_pages(first..end);
    }

    /// Takes every page out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The number of pages in the bitmap.
    #[must_use]
    pub fn count(&self) -> usize {
        let ones = self.words.iter().map(|word| word.count_ones() as usize);
        ones.sum()
    }

    /// Whether the page is in. Pages are counted from 0.
    #[must_use]
    pub fn contains(&self, page: usize) -> bool {
        let word = self.words.get(page / WORD_BITS).copied().unwrap_or(0);
        word >> (page % WORD_BITS) & 1 == 1
    }

    /// Whether the page in which the byte at `offset` lies is in.
    pub(crate) fn contains_byte(&self, offset: u64) -> bool {
        let page = offset / self.page_size.bytes() as u64;
        usize::try_from(page).is_ok_and(|page| self.contains(page))
    }

    /// The first page from `page` on that is in.
    #[must_use]
    pub fn next(&self, page: usize) -> Option<usize> {
        let index = page / WORD_BITS;
        let (first, rest) = self.words.get(index..)?.split_first()?;
        let first = first & (u64::MAX << (page % WORD_BITS));
        let words = std::iter::once(first).chain(rest.iter().copied());
        let (skipped, word) = words.enumerate().find(|(_, word)| *word != 0)?;
        Some((index + skipped) * WORD_BITS + word.trailing_zeros() as usize)
    }

    fn insert_pages(&mut self, pages: Range<usize>) {
        if pages.is_empty() {
            return;
        }
        let (first, last) = (pages.start / WORD_BITS, (pages.end - 1) / WORD_BITS);
        for index in first..=last {
            let start = pages.start.saturating_sub(index * WORD_BITS);
            let end = (pages.end - index * WORD_BITS).min(WORD_BITS);
            let mask = u64::MAX >> (WORD_BITS - end) & u64::MAX << start;
            if let Some(word) = self.words.get_mut(index) {
                *word |= mask;
            }
        }
    }
}

const WORD_BITS: usize = u64::BITS as usize;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pages: usize) -> DirtyBitmap {
        DirtyBitmap::new(pages * 4096, PageSize::K4)
    }

    fn all(bitmap: &DirtyBitmap) -> Vec<usize> {
        let first = bitmap.next(0);
        std::iter::successors(first, |page| bitmap.next(page + 1)).collect()
    }

    #[test]
    fn every_range_of_pages_is_itself() {
        for start in 0..200 {
            for end in start..200 {
                let mut bitmap = of(200);
                bitmap.insert_bytes(start as u64 * 4096..end as u64 * 4096);
                assert_eq!(all(&bitmap), (start..end).collect::<Vec<_>>());
                assert_eq!(bitmap.count(), end - start);
            }
        }
    }

    #[test]
    fn bytes_stand_for_the_pages_they_lie_in() {
        let mut bitmap = of(4);
        bitmap.insert_bytes(4095..4097);
        bitmap.insert_bytes(3 * 4096..u64::MAX);
        bitmap.insert_bytes(u64::MAX - 1..u64::MAX);
        assert_eq!(all(&bitmap), [0, 1, 3]);
        assert!(bitmap.contains(3) && !bitmap.contains(2) && !bitmap.contains(4));
        assert_eq!(bitmap.next(4), None);
        bitmap.clear();
        assert_eq!(bitmap.count(), 0);
    }

    #[test]
    fn a_last_page_need_not_be_whole() {
        let mut bitmap = DirtyBitmap::new(4097, PageSize::K4);
        bitmap.insert_all();
        assert_eq!((bitmap.pages(), bitmap.count()), (2, 2));
        assert_eq!(DirtyBitmap::new(0, PageSize::K4).next(0), None);
    }
}
