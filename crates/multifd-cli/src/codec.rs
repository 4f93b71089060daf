//! How pages are compressed, as it was typed.

use std::path::Path;
use std::str::FromStr;

use multifd_codec::auto::Auto;
use multifd_codec::{Accel, Effort, Settings};
use multifd_wire::Method;

use crate::args::{CodecArgs, Compression};

/// The chosen options, with the defaults filled in.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    /// The method.
    pub method: Method,
    /// Its settings, and the accelerator for reading.
    pub settings: Settings,
    /// The effort is found out during each migration.
    pub auto: bool,
}

/// A value of `--effort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EffortArg {
    /// Whatever is best at the moment.
    Auto,
    Fixed(Effort),
}

impl FromStr for EffortArg {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word.parse() {
            Ok(effort) => Ok(Self::Fixed(effort)),
            Err(_) if word == "auto" => Ok(Self::Auto),
            Err(_) => Err("efforts are auto, fast, balanced and dense".to_owned()),
        }
    }
}

impl CodecArgs {
    /// The method that is written, to a trunk or to another leg.
    #[must_use]
    pub fn method(&self, to_trunk: bool) -> Method {
        match self.compression(to_trunk) {
            Compression::None => Method::None,
            Compression::Zlib => Method::Zlib,
            Compression::Zstd => Method::Zstd,
            Compression::Qpl => Method::Qpl,
            Compression::Canned => Method::Canned,
            Compression::Auto if has_zstd() => Method::Zstd,
            Compression::Auto => Method::Zlib,
        }
    }

    /// The accelerator, and whether it was asked for. The default is an IAA that is ready, and
    /// otherwise software.
    pub(crate) fn accel(&self) -> (Accel, bool) {
        match self.accel {
            Some(accel) => (accel, true),
            // Levels are those of the ordinary library.
            None if self.zlib_level.is_some() => (Accel::None, false),
            None => (usual_accel(), false),
        }
    }

    fn compression(&self, to_trunk: bool) -> Compression {
        let usual = match to_trunk {
            true => Compression::Auto,
            false => Compression::None,
        };
        self.compression.unwrap_or(usual)
    }

    /// The codec to write with, to a trunk or to another leg. Refuses an option without an effect,
    /// rather than ignoring it.
    pub fn codec(&self, to_trunk: bool) -> Result<Codec, String> {
        let compression = self.compression(to_trunk);
        let method = self.method(to_trunk);
        if compression == Compression::Auto && !to_trunk {
            return Err(
                "--compression auto is for a trunk: a QEMU reads only the method of its \
                        multifd-compression. Say --compression zlib or zstd, and --effort auto"
                    .to_owned(),
            );
        }
        let mut settings = Settings::default();
        if let Some(level) = self.zlib_level {
            self.needs("zlib-level", Compression::Zlib)?;
            if self.accel.is_some_and(|accel| accel != Accel::None) {
                return Err("--zlib-level has no effect here: it is for --accel none".to_owned());
            }
            settings.zlib_level = level;
        }
        let (accel, is_asked_for) = self.accel();
        settings.accel = match (method, accel) {
            // No accelerator writes zstd.
            (Method::Zstd, Accel::Auto) if !is_asked_for => Accel::Software,
            _ => accel,
        };
        if let Some(streams) = self.streams {
            if compression == Compression::None {
                return Err("--streams has no effect without --compression".to_owned());
            }
            settings.streams = streams;
        }
        let is_zlib = compression == Compression::Zlib;
        let has_own_zlib = is_zlib && matches!(accel, Accel::Software | Accel::Auto);
        if let Some(huffman) = self.huffman {
            let has_libqpl = !matches!(accel, Accel::None | Accel::Software);
            if compression != Compression::Qpl && !(is_zlib && has_libqpl) {
                return Err("--huffman has no effect here: it is for --compression qpl, or zlib with --accel qpl".to_owned());
            }
            settings.huffman = huffman;
        }
        if let Some(EffortArg::Fixed(effort)) = self.effort {
            let has_own_pages = matches!(compression, Compression::Qpl | Compression::Canned)
                && matches!(accel, Accel::None | Accel::Software | Accel::Auto);
            if !has_own_zlib && !has_own_pages {
                return Err("--effort has no effect here: it is for --compression zlib with --accel software or auto, and qpl or canned without libqpl".to_owned());
            }
            settings.effort = effort;
        }
        if let Some(window) = self.window {
            if !has_own_zlib {
                return Err("--window has no effect here: it is for --compression zlib with --accel software or auto".to_owned());
            }
            settings.window = window;
        }
        if let Some(level) = self.zstd_level {
            self.needs("zstd-level", Compression::Zstd)?;
            settings.zstd_level = level;
        }
        let auto = self.auto(compression, method, &mut settings)?;
        Ok(Codec {
            method,
            settings,
            auto,
        })
    }

    /// Whether the effort is found out.
    fn auto(
        &self,
        compression: Compression,
        method: Method,
        settings: &mut Settings,
    ) -> Result<bool, String> {
        let is_asked_for = self.effort == Some(EffortArg::Auto);
        if !is_asked_for && compression != Compression::Auto {
            return Ok(false);
        }
        if self.zstd_level.is_some() {
            return Err(
                "--zstd-level has no effect with --effort auto, which chooses levels: \
                        leave one of them out"
                    .to_owned(),
            );
        }
        if self.streams.is_some_and(|streams| streams.value() > 1) {
            return Err(
                "--streams does not go with --effort auto: leave one of them out".to_owned(),
            );
        }
        if method == Method::Zlib && settings.accel == Accel::Auto {
            settings.accel = Accel::Software;
        }
        match Auto::new(method, settings) {
            Some(_) => Ok(true),
            None if !is_asked_for => Ok(false),
            None => Err(
                "--effort auto is for --compression zstd, and for zlib with --accel software"
                    .to_owned(),
            ),
        }
    }

    fn needs(&self, option: &str, method: Compression) -> Result<(), String> {
        if self.compression == Some(method) {
            return Ok(());
        }
        let method = method.as_str();
        Err(format!(
            "--{option} has no effect here: add --compression {method}, or leave it out"
        ))
    }
}

/// The accelerator where none was asked for.
pub(crate) fn usual_accel() -> Accel {
    if iaa_detect::detect(Path::new("/")).is_ready() {
        Accel::Auto
    } else {
        Accel::Software
    }
}

/// Whether this build can write zstd.
fn has_zstd() -> bool {
    multifd_codec::encoder(Method::Zstd, &Settings::default()).is_ok()
}
