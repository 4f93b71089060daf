//! How pages are compressed, as it was typed.

use multifd_codec::{Accel, Settings};

use crate::args::{CodecArgs, Compression};

impl CodecArgs {
    /// What has no effect on what is written would be passed over in silence, so it is refused.
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
        if let Some(huffman) = self.huffman {
            let deflates = matches!(self.compression, Compression::Zlib | Compression::Qpl);
            if !deflates || matches!(self.accel, Accel::None | Accel::Software) {
                return Err("--huffman has no effect here: it is for --compression zlib or qpl with --accel qpl".to_owned());
            }
            settings.huffman = huffman;
        }
        let is_own = self.compression == Compression::Zlib
            && matches!(self.accel, Accel::Software | Accel::Auto);
        if (self.effort.is_some() || self.window.is_some()) && !is_own {
            let option = if self.effort.is_some() {
                "effort"
            } else {
                "window"
            };
            return Err(format!(
                "--{option} has no effect here: it is for --compression zlib with --accel software or auto"
            ));
        }
        settings.effort = self.effort.unwrap_or_default();
        settings.window = self.window.unwrap_or_default();
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
