//! The backend of a codec: independent of the method.
//!
//! The method is the format on the wire, and both ends have to agree on it. The backend is each
//! end's own choice when it makes the codec ([`Accel`]). The codec reports its actual backend at
//! any time ([`Backend`], [`PathCounts`]), so missing or failed hardware is always visible.

use std::fmt;
use std::ops::{Add, AddAssign};
use std::str::FromStr;
use std::sync::Arc;

use crate::SettingError;

/// The choice of backend: QEMU's proposed `multifd-compression-accel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Accel {
    /// Only the method's ordinary library, as in a stock QEMU.
    #[default]
    None,
    /// `page-deflate` on this machine's processors, on several of them if there are several
    /// streams. `zstd` keeps its ordinary library, which [`Backend`] then names.
    Software,
    /// libqpl: the hardware if available, else its software path.
    Qpl,
    /// libqpl's hardware path, or an error. A page that the device refuses is still done in
    /// software, and counted.
    QplHardware,
    /// libqpl's software path, or an error.
    QplSoftware,
    /// The best backend on this machine for the method.
    Auto,
}

impl Accel {
    /// All choices.
    pub(crate) const ALL: [Self; 6] = [
        Self::None,
        Self::Software,
        Self::Qpl,
        Self::QplHardware,
        Self::QplSoftware,
        Self::Auto,
    ];

    /// The name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Software => "software",
            Self::Qpl => "qpl",
            Self::QplHardware => "qpl-hardware",
            Self::QplSoftware => "qpl-software",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Accel {
    type Err = SettingError;

    fn from_str(word: &str) -> Result<Self, SettingError> {
        let found = Self::ALL.into_iter().find(|accel| accel.as_str() == word);
        let allowed = "none, software, qpl, qpl-hardware, qpl-software or auto";
        found.ok_or_else(|| SettingError::word(word, allowed))
    }
}

/// The Huffman code of an accelerated deflate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Huffman {
    /// The format's own code: the fastest, and the largest result.
    #[default]
    Fixed,
    /// A code made from each piece: smaller, for two or three times the work.
    Dynamic,
}

impl Huffman {
    /// The name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
        }
    }
}

impl fmt::Display for Huffman {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Huffman {
    type Err = SettingError;

    fn from_str(word: &str) -> Result<Self, SettingError> {
        match word {
            "fixed" => Ok(Self::Fixed),
            "dynamic" => Ok(Self::Dynamic),
            _ => Err(SettingError::word(word, "fixed or dynamic")),
        }
    }
}

/// The backend of a codec, and why no better one is in use.
///
/// [`Display`](fmt::Display) fits into a part of a line, for example `qpl-software (no IAA: idxd
/// module not loaded)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    kind: BackendKind,
    reason: Option<Arc<str>>,
}

impl Backend {
    /// The requested engine.
    #[must_use]
    pub(crate) const fn new(kind: BackendKind) -> Self {
        Self { kind, reason: None }
    }

    /// A lesser engine than requested, and the reason.
    #[must_use]
    pub(crate) fn because(kind: BackendKind, reason: impl Into<Arc<str>>) -> Self {
        Self {
            kind,
            reason: Some(reason.into()),
        }
    }

    /// The engine that does the work.
    #[must_use]
    pub const fn kind(&self) -> BackendKind {
        self.kind
    }

    /// Why a requested, better engine is not in use.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{} ({reason})", self.kind),
            None => self.kind.fmt(f),
        }
    }
}

/// The library or device that does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// The method's ordinary library.
    Plain,
    /// `page-deflate`.
    Software,
    /// An IAA, through libqpl.
    QplHardware,
    /// libqpl's software path.
    QplSoftware,
}

impl BackendKind {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Software => "software",
            Self::QplHardware => "qpl-hardware",
            Self::QplSoftware => "qpl-software",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The number of pages by backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PathCounts {
    /// Pages done by an accelerator.
    pub hardware: u64,
    /// Pages done by a processor.
    pub software: u64,
    /// Pages carried uncompressed.
    pub raw: u64,
}

impl PathCounts {
    /// `pages` done by an accelerator.
    #[cfg(any(feature = "qpl", test))]
    #[must_use]
    pub(crate) const fn hardware(pages: usize) -> Self {
        Self {
            hardware: pages as u64,
            software: 0,
            raw: 0,
        }
    }

    /// `pages` done by a processor.
    #[must_use]
    pub(crate) const fn software(pages: usize) -> Self {
        Self {
            hardware: 0,
            software: pages as u64,
            raw: 0,
        }
    }

    /// `pages` carried uncompressed.
    #[must_use]
    pub const fn raw(pages: usize) -> Self {
        Self {
            hardware: 0,
            software: 0,
            raw: pages as u64,
        }
    }

    /// All pages.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.hardware
            .saturating_add(self.software)
            .saturating_add(self.raw)
    }
}

impl Add for PathCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            hardware: self.hardware.saturating_add(other.hardware),
            software: self.software.saturating_add(other.software),
            raw: self.raw.saturating_add(other.raw),
        }
    }
}

impl AddAssign for PathCounts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_printed() {
        for accel in Accel::ALL {
            assert_eq!(accel.to_string().parse(), Ok(accel));
        }
        for huffman in [Huffman::Fixed, Huffman::Dynamic] {
            assert_eq!(huffman.to_string().parse(), Ok(huffman));
        }
        let error = "qat".parse::<Accel>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"qat\" is not none, software, qpl, qpl-hardware, qpl-software or auto"
        );
    }

    #[test]
    fn a_backend_says_why_it_is_no_better() {
        let better = Backend::new(BackendKind::QplHardware);
        assert_eq!(better.to_string(), "qpl-hardware");
        let reason = "no IAA: idxd module not loaded";
        let lesser = Backend::because(BackendKind::QplSoftware, reason);
        assert_eq!(lesser.to_string(), format!("qpl-software ({reason})"));
    }

    #[test]
    fn counts_add_up() {
        let mut counts = PathCounts::hardware(1) + PathCounts::software(2);
        counts += PathCounts::raw(4);
        assert_eq!(counts.total(), 7);
    }
}
