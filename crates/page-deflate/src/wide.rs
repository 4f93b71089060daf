//! What the parser does to many bytes at once, and which instructions this machine has for it.

use super::item::{self, Item};

/// Steps over many bytes. A value stands for the instructions it uses being there.
pub(super) trait Wide: Copy {
    /// Bit i says whether bytes i are equal.
    fn equal(self, a: &[u8; 32], b: &[u8; 32]) -> u32;

    /// Eight items of two literals each.
    #[inline(always)]
    fn literals(self, bytes: &[u8; 16]) -> [Item; 8] {
        std::array::from_fn(|i| item::two_literals(bytes[2 * i], bytes[2 * i + 1]))
    }
}

/// Plain code for any machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

impl Wide for Plain {
    #[inline(always)]
    fn equal(self, a: &[u8; 32], b: &[u8; 32]) -> u32 {
        let word = |bytes: &[u8; 32], i: usize| {
            u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * i + byte]))
        };
        (0..4).fold(0, |mask, i| {
            const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
            let different = word(a, i) ^ word(b, i);
            // The top bit of each byte that is zero, then these eight bits side by side.
            let equal = !(((different & LOW) + LOW) | different | LOW);
            let gathered = (equal >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            mask | (gathered as u32) << (8 * i)
        })
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "vector instructions which not every machine has"
)]
mod x86 {
    use super::{Item, Wide};
    use std::arch::x86_64::{
        __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_cmpeq_epi8, _mm256_cvtepu16_epi32,
        _mm256_loadu_si256, _mm256_movemask_epi8, _mm256_or_si256, _mm256_set1_epi32,
        _mm256_slli_epi32, _mm256_srli_epi32,
    };

    /// An x86-64 with AVX2, BMI1, BMI2 and LZCNT.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        /// Whether this machine is one.
        pub(crate) fn detect() -> Option<Self> {
            let all = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt");
            all.then_some(Self(()))
        }
    }

    impl Wide for Avx2 {
        #[inline(always)]
        fn equal(self, a: &[u8; 32], b: &[u8; 32]) -> u32 {
            // SAFETY: a value of this type proves AVX2.
            unsafe { equal_by_avx2(a, b) }
        }

        #[inline(always)]
        fn literals(self, bytes: &[u8; 16]) -> [Item; 8] {
            // SAFETY: a value of this type proves AVX2.
            unsafe { literals_by_avx2(bytes) }
        }
    }

    /// An x86-64 with the usual parts of AVX-512. The compiler makes better loops for it; what is
    /// written here by hand is that of AVX2.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Avx512(Avx2);

    impl Avx512 {
        /// Whether this machine is one.
        pub(crate) fn detect() -> Option<Self> {
            let all = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            Avx2::detect().filter(|_| all).map(Self)
        }

        /// Whether it is faster than with AVX2 alone. What is gained, is gained by gathers, of
        /// which the compiler makes the coder's table look-ups. They are as fast as loads on
        /// Intel's processors from 2023 on (Sapphire Rapids), which FP16 tells from those before,
        /// where protection against Downfall makes them slow, and from AMD's.
        pub(crate) fn is_fast() -> bool {
            is_x86_feature_detected!("avx512fp16")
        }
    }

    impl Wide for Avx512 {
        #[inline(always)]
        fn equal(self, a: &[u8; 32], b: &[u8; 32]) -> u32 {
            self.0.equal(a, b)
        }

        #[inline(always)]
        fn literals(self, bytes: &[u8; 16]) -> [Item; 8] {
            self.0.literals(bytes)
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn equal_by_avx2(a: &[u8; 32], b: &[u8; 32]) -> u32 {
        let load = |bytes: &[u8; 32]| -> __m256i {
            // SAFETY: 32 bytes are there.
            unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
        };
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(load(a), load(b))) as u32
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn literals_by_avx2(bytes: &[u8; 16]) -> [Item; 8] {
        // SAFETY: 16 bytes are there.
        let pairs = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
        let first = _mm256_and_si256(pairs, _mm256_set1_epi32(0xff));
        let second = _mm256_slli_epi32(_mm256_srli_epi32(pairs, 8), 10);
        let vector = _mm256_or_si256(first, second);
        // SAFETY: a vector of 32 bytes is 8 items, whatever it holds.
        unsafe { std::mem::transmute::<__m256i, [Item; 8]>(vector) }
    }
}
