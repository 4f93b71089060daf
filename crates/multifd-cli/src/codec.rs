//! How pages are compressed, as it was typed.

use multifd_codec::{Accel, Settings};
use multifd_wire::Method;

use crate::args::{CodecArgs, Compression};

impl CodecArgs {
    /// The method of `--compression`.
    #[must_use]
    pub fn method(&self) -> Method {
        self.compression.into()
    }

    /// Refuses an option without an effect, rather than ignoring it.
    pub fn settings(&self) -> Result<Settings, String> {
        let mut settings = Settings::default();
        if let Some(level) = self.zlib_level {
            self.needs("zlib-level", Compression::Zlib)?;
            if self.accel != Accel::None {
                return Err("--zlib-level has no effect here: it is for --accel none".to_owned());
            }
            settings.zlib_level = level;
        }
        settings.accel = self.accel;
        if let Some(streams) = self.streams {
            if self.compression == Compression::None {
                return Err("--streams has no effect without --compression".to_owned());
            }
            settings.streams = streams;
        }
        let is_zlib = self.compression == Compression::Zlib;
        let has_own_zlib = is_zlib && matches!(self.accel, Accel::Software | Accel::Auto);
        if let Some(huffman) = self.huffman {
            let has_libqpl = !matches!(self.accel, Accel::None | Accel::Software);
            if self.compression != Compression::Qpl && !(is_zlib && has_libqpl) {
                return Err("--huffman has no effect here: it is for --compression qpl, or zlib with --accel qpl".to_owned());
            }
            settings.huffman = huffman;
        }
        if let Some(effort) = self.effort {
            let has_own_pages = matches!(self.compression, Compression::Qpl | Compression::Canned)
                && matches!(self.accel, Accel::None | Accel::Software | Accel::Auto);
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
        Ok(settings)
    }

    fn needs(&self, option: &str, method: Compression) -> Result<(), String> {
        if self.compression == method {
            return Ok(());
        }
        let method = multifd_wire::Method::from(method);
        Err(format!(
            "--{option} has no effect here: add --compression {method}, or leave it out"
        ))
    }
}
