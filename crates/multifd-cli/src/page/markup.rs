//! Writes elements and text. All text and all values are escaped, and every element is closed.

use std::fmt::{self, Display, Write};

use crate::say;

/// A page, as far as it is written.
#[derive(Debug, Default)]
pub(super) struct Markup(String);

/// Attributes of an element.
pub(super) type Attributes<'a> = &'a [(&'static str, &'a dyn Display)];

impl Markup {
    /// Writes an element and what is `inside` of it.
    pub(super) fn element(
        &mut self,
        name: &'static str,
        attributes: Attributes<'_>,
        inside: impl FnOnce(&mut Self),
    ) {
        self.start(name, attributes);
        self.0.push('>');
        inside(self);
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    /// Writes an element that HTML gives no end, such as `meta`.
    pub(super) fn void(&mut self, name: &'static str, attributes: Attributes<'_>) {
        self.start(name, attributes);
        self.0.push_str("/>");
    }

    /// Writes an element with text.
    pub(super) fn words(
        &mut self,
        name: &'static str,
        attributes: Attributes<'_>,
        text: impl Display,
    ) {
        self.element(name, attributes, |inside| inside.text(text));
    }

    /// Writes text.
    pub(super) fn text(&mut self, text: impl Display) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "{}", Escaped(&text));
    }

    /// Writes what is markup, or a style sheet.
    pub(super) fn raw(&mut self, text: &'static str) {
        self.0.push_str(text);
    }

    pub(super) fn finish(self) -> String {
        self.0
    }

    fn start(&mut self, name: &'static str, attributes: Attributes<'_>) {
        self.0.push('<');
        self.0.push_str(name);
        for (name, value) in attributes {
            let _ = write!(self.0, " {name}=\"{}\"", Escaped(*value));
        }
    }
}

/// Text in which nothing is markup, and nothing commands a terminal or the direction of text.
struct Escaped<'a, T: ?Sized>(&'a T);

impl<T: Display + ?Sized> Display for Escaped<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = say::printable(self.0);
        for piece in text.split_inclusive(['&', '<', '>', '"', '\'']) {
            let (plain, special) = match piece.char_indices().next_back() {
                Some((at, special @ ('&' | '<' | '>' | '"' | '\''))) => {
                    (piece.get(..at).unwrap_or_default(), special)
                }
                _ => (piece, '\0'),
            };
            f.write_str(plain)?;
            f.write_str(match special {
                '&' => "&amp;",
                '<' => "&lt;",
                '>' => "&gt;",
                '"' => "&quot;",
                '\'' => "&#39;",
                _ => "",
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Checks that all elements are closed in order, and returns all text and values, unescaped.
    #[track_caller]
    pub(in crate::page) fn well_formed(markup: &str) -> Vec<String> {
        let mut open = Vec::new();
        let mut words = Vec::new();
        let mut rest = markup.strip_prefix("<!DOCTYPE html>").unwrap_or(markup);
        while !rest.is_empty() {
            let (text, behind) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
            words.push(unescaped(text));
            rest = behind;
            let Some(tag) = rest.strip_prefix('<') else {
                break;
            };
            // No value has a `>`, as it is escaped there.
            let (tag, behind) = tag.split_once('>').expect("an end of the tag");
            rest = behind;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
                continue;
            }
            let is_void = tag.ends_with('/');
            let tag = tag.trim_end_matches('/');
            let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
            assert!(name.bytes().all(|c| c.is_ascii_alphanumeric()), "{name}");
            while !attributes.is_empty() {
                let (name, value) = attributes.split_once("=\"").expect("a value");
                assert!(name.bytes().all(|c| c.is_ascii_alphabetic() || c == b'-'));
                let (value, behind) = value.split_once('"').expect("an end of the value");
                assert!(!value.contains('<'), "{value}");
                words.push(unescaped(value));
                attributes = behind.trim_start();
            }
            if !is_void {
                open.push(name);
            }
        }
        assert_eq!(open, Vec::<&str>::new(), "all are closed");
        words
    }

    fn unescaped(text: &str) -> String {
        let known = [
            ("&lt;", "<"),
            ("&gt;", ">"),
            ("&quot;", "\""),
            ("&#39;", "'"),
            ("&amp;", "&"),
        ];
        let all = text.matches('&').count();
        let escapes: usize = known
            .iter()
            .map(|(word, _)| text.matches(word).count())
            .sum();
        assert_eq!(all, escapes, "{text}");
        known
            .iter()
            .fold(text.to_owned(), |text, (word, c)| text.replace(word, c))
    }

    #[test]
    fn nothing_foreign_becomes_markup() {
        let foreign = "</p><script>alert(\"1\")</script> & 'é' \u{202e}\u{1b}[31m<";
        let mut markup = Markup::default();
        markup.element("p", &[("title", &foreign)], |inside| {
            inside.words("b", &[], foreign);
            inside.text("&amp;");
        });
        let text = markup.finish();
        assert!(
            !text.contains("<script") && !text.contains('\u{1b}'),
            "{text}"
        );
        assert!(!text.contains('\u{202e}'), "{text}");
        let words = well_formed(&text);
        let kept = |word: &&String| word.starts_with("</p><script>alert(\"1\")</script> & 'é' ");
        assert_eq!(words.iter().filter(kept).count(), 2, "{words:?}");
        assert!(words.contains(&"&amp;".to_owned()), "{words:?}");
    }

    #[test]
    #[should_panic(expected = "all are closed")]
    fn what_is_open_is_found() {
        well_formed("<p><b>x</b>");
    }
}
