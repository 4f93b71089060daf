//! Numbers of variable length: seven bits in each byte, the low ones first.

/// Appends a number.
pub(crate) fn write(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number from the front. `None` if it is cut off, or longer than [`MAX_LEN`].
pub(crate) fn read(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for position in 0..MAX_LEN {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << (7 * position);
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Appends a signed number, zigzag: the lowest bit is the sign.
pub(crate) fn write_signed(number: i64, out: &mut Vec<u8>) {
    write((number << 1 ^ number >> 63).cast_unsigned(), out);
}

/// Takes a signed number from the front. `None` as for [`read`].
pub(crate) fn read_signed(from: &mut &[u8]) -> Option<i64> {
    let number = read(from)?.cast_signed();
    Some(number >> 1 ^ -(number & 1))
}

/// Enough for the difference of two numbers of 32 bits.
const MAX_LEN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let last = i64::from(u32::MAX);
        for number in [0, 1, -1, 63, -64, 64, 8191, -8192, 8192, last, -last] {
            let mut bytes = Vec::new();
            write_signed(number, &mut bytes);
            let mut rest = &*bytes;
            assert_eq!(read_signed(&mut rest), Some(number));
            assert!(rest.is_empty());
            for len in 0..bytes.len() {
                assert_eq!(read_signed(&mut &bytes[..len]), None);
            }
        }
    }

    #[test]
    fn a_number_has_an_end() {
        assert_eq!(read(&mut &[0xff; 9][..]), None);
        assert_eq!(
            read(&mut &[0xff, 0xff, 0xff, 0xff, 0x7f][..]),
            Some((1 << 35) - 1)
        );
    }
}
