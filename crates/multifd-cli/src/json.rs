//! JSON that is fit for a terminal too.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// A value on one line. What commands a terminal, or the direction of text, is written by its
/// number, which changes nothing for programs.
///
/// # Errors
///
/// When the value cannot be said in JSON, as a path that is no text.
pub(crate) fn to_string(value: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    to_writer(&mut bytes, value)?;
    String::from_utf8(bytes).map_err(|error| serde_json::Error::io(io::Error::other(error)))
}

/// Writes JSON piece by piece.
///
/// # Errors
///
/// Same as [`to_string`], and errors of the writer.
pub(crate) fn to_writer(out: impl io::Write, value: &impl Serialize) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, Escaping))
}

/// Escapes what RFC 8259 lets stand: DEL, C1 and bidirectional controls, separators of lines.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut plain = 0;
        for (at, c) in fragment.char_indices() {
            let mut text = [0; 4];
            if !multifd_wire::Printable(c.encode_utf8(&mut text).as_bytes()).is_plain() {
                CompactFormatter
                    .write_string_fragment(out, fragment.get(plain..at).unwrap_or_default())?;
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
                plain = at + c.len_utf8();
            }
        }
        CompactFormatter.write_string_fragment(out, fragment.get(plain..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_is_escaped_and_the_data_stay() {
        let data = "a\u{9b}31m\u{202e}\u{7f}\u{2028}\u{1b}\n\"\\é😀\u{61c}";
        let text = to_string(&[data]).unwrap();
        assert_eq!(
            text,
            r#"["a\u009b31m\u202e\u007f\u2028\u001b\n\"\\é😀\u061c"]"#
        );
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), [data]);
    }
}
