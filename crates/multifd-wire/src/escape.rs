//! What a peer names, as text that commands no terminal and forges no line of a log.

use alloc::string::String;
use core::fmt::{self, Write};

/// Bytes from outside as text.
///
/// What a terminal or a reader could take for more than a letter is shown by its number: control
/// characters of either set (ECMA-48 C0 and C1), DEL, controls of the direction of text, separators
/// of lines, and bytes that are not UTF-8. A backslash stays as it is, so that text which was
/// escaped before is not escaped once more.
///
/// ```
/// use multifd_wire::Printable;
///
/// let name = b"\x1b[2Jpc.ram\n\xff";
/// assert_eq!(Printable(name).to_string(), r"\u{1b}[2Jpc.ram\n\xff");
/// ```
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "callers wrap bytes in it")]
pub struct Printable<'a>(pub &'a [u8]);

impl Printable<'_> {
    /// Whether all of it is shown as it is.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        core::str::from_utf8(self.0).is_ok_and(|text| !text.chars().any(commands))
    }
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(self.0.len());
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\n' => text.push_str("\\n"),
                    '\r' => text.push_str("\\r"),
                    '\t' => text.push_str("\\t"),
                    c if commands(c) => text.extend(c.escape_unicode()),
                    c => text.push(c),
                }
            }
            for byte in chunk.invalid() {
                write!(text, "\\x{byte:02x}")?;
            }
        }
        f.pad(&text)
    }
}

/// Whether a character does something to the text around it.
fn commands(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    ) || c.is_control()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use std::format;

    #[test]
    fn all_that_commands_is_shown_and_all_else_stays() {
        for number in 0..=0x2100_u32 {
            let Some(c) = char::from_u32(number) else {
                continue;
            };
            let is_command = matches!(
                number,
                0..=0x1f | 0x7f..=0x9f | 0x61c | 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069
            );
            let shown = Printable(c.to_string().as_bytes()).to_string();
            assert_eq!(shown != c.to_string(), is_command, "{number:x}");
            assert_eq!(Printable(c.to_string().as_bytes()).is_plain(), !is_command);
            assert!(!shown.contains(c) || !is_command, "{number:x}");
        }
    }

    #[test]
    fn what_is_shown_is_shown_the_same_again() {
        let once = Printable(b"a\\b\x1b\x7f\xff\xc2").to_string();
        assert_eq!(once, r"a\b\u{1b}\u{7f}\xff\xc2");
        assert_eq!(Printable(once.as_bytes()).to_string(), once);
        assert_eq!(format!("{:>4}|", Printable(b"a\n")), " a\\n|");
    }
}
