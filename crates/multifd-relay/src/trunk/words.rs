//! Words for people.

use std::fmt;

use multifd_transport::printable;

/// Why something failed, in words for the operator at the other end. Shown, they have neither
/// control characters nor line ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words(String);

impl Words {
    /// The most bytes of UTF-8: a chain of causes with a path in it.
    pub const MAX_LEN: usize = 1024;

    /// The words; what is beyond [`Words::MAX_LEN`] bytes is cut off, between two characters.
    #[must_use]
    pub fn new(words: &str) -> Self {
        let mut end = words.len().min(Self::MAX_LEN);
        while !words.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        Self(words.get(..end).unwrap_or_default().into())
    }

    /// The words as they came: they may have control characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_between_characters_and_shown_without_commands() {
        let long = format!("a{}", "é".repeat(600));
        let words = Words::new(&long);
        assert_eq!(words.as_str().len(), 1023);
        assert!(long.starts_with(words.as_str()));
        let shown = Words::new("no\n\x1b[31mred\u{9b}").to_string();
        assert!(!shown.chars().any(char::is_control), "{shown}");
    }
}
