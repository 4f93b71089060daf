//! A mode: a method and an accelerator, named as in the published tables.

use std::fmt;
use std::str::FromStr;

use multifd_codec::{Accel, Settings, encoder};
use multifd_wire::Method;

/// A method, an accelerator if given, and whether pages that are sent again go as differences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    method: Method,
    accel: Option<Accel>,
    delta: bool,
}

impl Mode {
    pub(crate) const fn method(&self) -> Method {
        self.method
    }

    /// Whether pages that are sent again go as differences.
    pub(crate) const fn delta(&self) -> bool {
        self.delta
    }

    /// The accelerator. Methods without an explicit one use the best available.
    pub(crate) const fn accel(&self) -> Accel {
        match (self.accel, self.method) {
            (Some(accel), _) => accel,
            (None, Method::Qpl | Method::Canned) => Accel::Auto,
            (None, _) => Accel::None,
        }
    }

    /// The reason if this mode is not available here.
    pub(crate) fn missing(&self) -> Option<String> {
        let mut settings = Settings::default();
        settings.accel = self.accel();
        let refused = encoder(self.method, &settings).err();
        refused.map(|error| error.to_string())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, delta) = match text.strip_suffix(DELTA) {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (method, accel) = match rest.split_once('+') {
            Some((method, accel)) => (method, Some(accel)),
            None => (rest, None),
        };
        let accel = accel.map(str::parse::<Accel>).transpose();
        Ok(Self {
            method: method
                .parse()
                .map_err(|error: multifd_wire::UnknownMethodName| error.to_string())?,
            accel: accel.map_err(|error| error.to_string())?,
            delta,
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.method)?;
        if let Some(accel) = self.accel {
            write!(f, "+{accel}")?;
        }
        match self.delta {
            true => f.write_str(DELTA),
            false => Ok(()),
        }
    }
}

/// The end of such a mode's name.
const DELTA: &str = "+delta";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_printed() {
        for text in ["zlib", "zlib+software", "zlib+qpl", "qpl", "canned", "none"] {
            assert_eq!(text.parse::<Mode>().unwrap().to_string(), text);
            let with = format!("{text}+delta");
            let mode = with.parse::<Mode>().unwrap();
            assert_eq!((mode.delta(), mode.to_string()), (true, with));
        }
        for text in [
            "",
            "zlib+",
            "lz4",
            "zlib+qat",
            "+delta",
            "zlib+delta+software",
        ] {
            assert!(text.parse::<Mode>().is_err(), "{text}");
        }
    }

    #[test]
    fn missing_accelerators_are_reported() {
        assert_eq!("zlib".parse::<Mode>().unwrap().missing(), None);
        let mode = "zstd+qpl".parse::<Mode>().unwrap();
        assert!(mode.missing().unwrap().contains("libqpl has no zstd"));
    }
}
