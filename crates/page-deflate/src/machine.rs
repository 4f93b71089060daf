//! Detects this machine's instruction sets. The hot loops are compiled for each of them and
//! selected here.

use super::bits::BitWriter;
use super::coder::Coder;
use super::format::MAX_WINDOW;
use super::item::Item;
use super::parse::{UNIT_ITEMS, parse};
use super::search::Search;
use super::wide::Plain;
#[cfg(target_arch = "x86_64")]
use super::wide::{Avx2, Avx512};
use super::window::{Unit, WindowBytes};

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Machine {
    /// Any machine.
    Plain(Plain),
    #[cfg(target_arch = "x86_64")]
    /// x86-64-v3, since 2013.
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    /// x86-64-v4, since 2017.
    Avx512(Avx512),
}

impl Machine {
    /// All instruction sets of this machine, the simplest first.
    pub(super) fn all() -> impl Iterator<Item = Machine> {
        #[cfg(target_arch = "x86_64")]
        let vectors = [
            Avx2::detect().map(Machine::Avx2),
            Avx512::detect().map(Machine::Avx512),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let vectors: [Option<Machine>; 0] = [];
        std::iter::once(Machine::Plain(Plain)).chain(vectors.into_iter().flatten())
    }

    /// The instruction set with the fastest loops.
    pub(super) fn best() -> Self {
        let is_fast = |machine: &Self| match machine {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Avx512::is_fast(),
            _ => true,
        };
        let best = Self::all().filter(is_fast).last();
        best.unwrap_or(Machine::Plain(Plain))
    }

    /// See [`parse`].
    pub(super) fn parse<S: Search>(
        self,
        search: &mut S,
        window: &WindowBytes,
        unit: Unit,
        window_bytes: usize,
        items: &mut [Item; UNIT_ITEMS],
    ) -> Option<usize> {
        if window_bytes == MAX_WINDOW {
            self.parse_with::<S, true>(search, window, unit, window_bytes, items)
        } else {
            self.parse_with::<S, false>(search, window, unit, window_bytes, items)
        }
    }

    fn parse_with<S: Search, const FAR: bool>(
        self,
        search: &mut S,
        window: &WindowBytes,
        unit: Unit,
        window_bytes: usize,
        items: &mut [Item; UNIT_ITEMS],
    ) -> Option<usize> {
        match self {
            Self::Plain(wide) => {
                parse::<_, _, FAR>(wide, search, window, unit, window_bytes, items)
            }
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code, reason = "a function for this kind of machine")]
            // SAFETY: a value of `Avx2` proves the features that the function is compiled for.
            Self::Avx2(wide) => unsafe {
                x86::parse_by_avx2::<_, FAR>(wide, search, window, unit, window_bytes, items)
            },
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code, reason = "a function for this kind of machine")]
            // SAFETY: a value of `Avx512` proves the features that the function is compiled for.
            Self::Avx512(wide) => unsafe {
                x86::parse_by_avx512::<_, FAR>(wide, search, window, unit, window_bytes, items)
            },
        }
    }

    /// See [`Coder::write`].
    pub(super) fn write(self, coder: &Coder, items: &[Item], writer: &mut BitWriter<'_>) {
        match self {
            Self::Plain(_) => coder.write(items, writer),
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code, reason = "a function for this kind of machine")]
            // SAFETY: a value of `Avx2` proves the features that the function is compiled for.
            Self::Avx2(_) => unsafe { x86::write_by_avx2(coder, items, writer) },
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code, reason = "a function for this kind of machine")]
            // SAFETY: a value of `Avx512` proves the features that the function is compiled for.
            Self::Avx512(_) => unsafe { x86::write_by_avx512(coder, items, writer) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;

    /// The hot loops for one instruction set.
    macro_rules! compile {
        ($wide:ty, $features:literal, $parse:ident, $write:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $parse<S: Search, const FAR: bool>(
                wide: $wide,
                search: &mut S,
                window: &WindowBytes,
                unit: Unit,
                window_bytes: usize,
                items: &mut [Item; UNIT_ITEMS],
            ) -> Option<usize> {
                super::parse::<_, _, FAR>(wide, search, window, unit, window_bytes, items)
            }

            #[target_feature(enable = $features)]
            pub(super) fn $write(coder: &Coder, items: &[Item], writer: &mut BitWriter<'_>) {
                coder.write(items, writer);
            }
        };
    }

    compile!(Avx2, "avx2,bmi1,bmi2,lzcnt", parse_by_avx2, write_by_avx2);
    compile!(
        Avx512,
        "avx2,bmi1,bmi2,lzcnt,avx512f,avx512bw,avx512dq,avx512vl",
        parse_by_avx512,
        write_by_avx512
    );
}

/// Lines of 64 bytes that start the processor's own prefetch. Asking for a whole page in one burst
/// waits for free buffers: up to 7 % of all time.
#[cfg(target_arch = "x86_64")]
const FETCHED_LINES: usize = 8;

/// Prefetches the beginning of bytes that are needed soon.
#[inline(always)]
pub(super) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64).take(FETCHED_LINES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[allow(unsafe_code, reason = "a vector instruction that takes a pointer")]
        // SAFETY: a prefetch accesses no memory architecturally and accepts any address.
        unsafe {
            _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T0);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}
