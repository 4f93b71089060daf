//! Names of guests.

use std::fmt;
use std::str::FromStr;

/// A guest's name on a trunk: 1 to 64 bytes of ASCII letters, digits, `.`, `_` and `-`. It does not
/// begin with `.` or `-`. So it is one part of a path, no option of a command, and safe to print.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The longest name, in bytes. It leaves room for a folder in the 108 bytes of a unix socket's
    /// address.
    const MAX_LEN: usize = 64;

    /// Checks a name.
    ///
    /// # Errors
    /// [`NameFault`] says which rule it breaks.
    pub fn new(name: &str) -> Result<Self, NameFault> {
        let found = name.len();
        if found == 0 || found > Self::MAX_LEN {
            let allowed = Self::MAX_LEN;
            return Err(Broken::Length { found, allowed }.into());
        }
        if let Some(found) = name.chars().find(|&char| !is_allowed(char)) {
            return Err(Broken::Character { found }.into());
        }
        match name.chars().next() {
            Some(found @ ('.' | '-')) => Err(Broken::Beginning { found }.into()),
            _ => Ok(Self(name.into())),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether all of the name fits `pattern`, in which each `*` stands for any characters, or
    /// none. Everything else stands for itself.
    #[must_use]
    pub fn matches(&self, pattern: &str) -> bool {
        let mut parts = pattern.split('*');
        // The first part stands at the beginning. `split` always has one.
        let Some(mut rest) = parts.next().and_then(|first| self.0.strip_prefix(first)) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            // There is no star.
            return rest.is_empty();
        };
        // Each part between two stars is taken where it comes first: this leaves the most for those
        // after it.
        for part in parts {
            match rest.split_once(part) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

fn is_allowed(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-')
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameFault;

    fn from_str(name: &str) -> Result<Self, NameFault> {
        Self::new(name)
    }
}

/// The rule that a name breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct NameFault(#[from] Broken);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Broken {
    /// It is empty or too long.
    #[error("a name of {found} bytes, 1 to {allowed} are allowed")]
    Length {
        /// Bytes of it.
        found: usize,
        /// The most allowed.
        allowed: usize,
    },
    /// It has a character that no name has.
    #[error("{found:?} in a name; ASCII letters, digits, '.', '_' and '-' are allowed")]
    Character {
        /// The first such character.
        found: char,
    },
    /// It begins with a character that may stand further behind only.
    #[error("a name that begins with {found:?}")]
    Beginning {
        /// The character.
        found: char,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_part_of_a_path() {
        for good in [
            "a",
            "vm-1",
            "web.example_2",
            &"x".repeat(64),
            "_",
            "0.",
            "a..b",
        ] {
            assert_eq!(Name::new(good).unwrap().to_string(), good);
        }
        let length = |found| NameFault(Broken::Length { found, allowed: 64 });
        assert_eq!(Name::new(""), Err(length(0)));
        assert_eq!(Name::new(&"x".repeat(65)), Err(length(65)));
        for (bad, found) in [
            ("a/b", '/'),
            ("a\0", '\0'),
            ("a b", ' '),
            ("ä", 'ä'),
            ("a*", '*'),
        ] {
            assert_eq!(Name::new(bad), Err(NameFault(Broken::Character { found })));
        }
        for (bad, found) in [(".", '.'), ("..", '.'), (".a", '.'), ("-a", '-')] {
            assert_eq!(Name::new(bad), Err(NameFault(Broken::Beginning { found })));
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        let name = Name::new("web-12.prod").unwrap();
        for pattern in [
            "web-12.prod",
            "*",
            "**",
            "web-*",
            "*.prod",
            "web-*.prod",
            "*web*12*prod*",
            "w*-*.*d",
            "*d",
            "web-12.prod*",
            "*web-12.prod",
        ] {
            assert!(name.matches(pattern), "{pattern}");
        }
        for pattern in [
            "",
            "web",
            "web-12",
            "prod",
            "*web",
            "prod*",
            "web-12.prod?",
            "web-*-*",
            "WEB-*",
            "*12*12*",
            "web-12.prod*d",
            "web-12.p*prod",
        ] {
            assert!(!name.matches(pattern), "{pattern}");
        }
        assert!(Name::new("aaab").unwrap().matches("*a*ab"));
    }
}
