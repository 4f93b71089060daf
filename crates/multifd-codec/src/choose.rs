//! Chooses the codec for a method and an accelerator.

use std::sync::Arc;

use multifd_wire::Method;
#[cfg(feature = "qpl")]
use qpl_sys::Status;

use crate::channel::Channel;
use crate::encoder::Machine;
use crate::error::UnsupportedFault;
#[cfg(feature = "qpl")]
use crate::paged::WritePages;
use crate::paged::canned::CodeHeads;
use crate::paged::qpl::NoHead;
use crate::paged::{self, Code, OwnPages, PageReader};
#[cfg(feature = "qpl")]
use crate::qpl::{self, Compressor, Direction, PageCompressor};
#[cfg(feature = "zstd")]
use crate::zstd;
use crate::{
    Accel, Backend, BackendKind, Decoder, Encoder, Settings, Streams, Unsupported, none, software,
    zlib,
};

/// Makes an encoder for one channel.
///
/// With [`Accel::None`] it is equivalent to a stock QEMU. [`Accel::Software`], and [`Accel::Auto`]
/// without an IAA, write `zlib` with `page-deflate`, which ignores [`Settings::zlib_level`]. They,
/// and [`Accel::None`], also write `qpl` and `canned` with it. A request for libqpl gets libqpl or
/// an error: only [`Accel::Qpl`] falls back from its hardware path to its software path, and
/// [`Encoder::backend`] reports the reason. Method `none` needs no backend and accepts any
/// accelerator.
///
/// [`Settings::streams`] are written in parallel on as many processors as the constructing thread
/// may use, with the help of otherwise idle helpers.
///
/// # Errors
///
/// [`Unsupported`] if this build cannot write the method, or not with this accelerator.
pub fn encoder(method: Method, settings: &Settings) -> Result<Encoder, Unsupported> {
    Encoder::new(method, settings)
}

/// The machine of an encoder, and its backend.
pub(crate) fn machine(
    method: Method,
    settings: &Settings,
) -> Result<(Machine, Backend), Unsupported> {
    let Settings {
        accel,
        streams,
        effort,
        window,
        ..
    } = *settings;
    let plain = Backend::new(BackendKind::Plain);
    Ok(match method {
        Method::None => (Machine::one_by_one(none::Raw), plain),
        Method::Zlib => match by_libqpl(method, settings)? {
            #[cfg(feature = "qpl")]
            Choice::Libqpl(compressor, backend) => {
                let stream = qpl::Deflate::new(*compressor, settings.huffman, streams);
                (Machine::one_by_one(stream), backend)
            }
            Choice::Own(reason) if accel != Accel::None => {
                let machine = if streams == Streams::default() {
                    Machine::one_by_one(software::Deflate::new(effort, window))
                } else {
                    Machine::together(software::DeflateRuns::on(effort, window, streams))
                };
                (machine, because(BackendKind::Software, reason))
            }
            Choice::Own(_) if streams == Streams::default() => {
                let stream = zlib::Deflate::new(settings.zlib_level);
                (Machine::one_by_one(stream), plain)
            }
            Choice::Own(_) => {
                let runs = zlib::DeflateRuns::on(settings.zlib_level, streams);
                (Machine::together(runs), plain)
            }
        },
        Method::Zstd if wants_libqpl(accel) => return Err(refused(method, accel, NO_ZSTD.into())),
        #[cfg(not(feature = "zstd"))]
        Method::Zstd => return Err(ZSTD_NOT_BUILT),
        #[cfg(feature = "zstd")]
        Method::Zstd if streams == Streams::default() => {
            let stream = zstd::Compress::new(settings.zstd_level)?;
            (Machine::one_by_one(stream), plain)
        }
        #[cfg(feature = "zstd")]
        Method::Zstd => {
            let runs = zstd::CompressRuns::on(settings.zstd_level, streams)?;
            (Machine::together(runs), plain)
        }
        Method::Qpl => match by_libqpl(method, settings)? {
            #[cfg(feature = "qpl")]
            Choice::Libqpl(compressor, backend) => {
                let head = NoHead::new(qpl::Work::Compress(settings.huffman));
                let pages = WritePages::new(PageCompressor::new(*compressor), head);
                (Machine::one_by_one(pages), backend)
            }
            Choice::Own(reason) => {
                let head = NoHead::new(Code::stream(settings.huffman));
                let pages = OwnPages::new(effort, streams, head);
                (
                    Machine::together(pages),
                    because(BackendKind::Software, reason),
                )
            }
        },
        Method::Canned => match by_libqpl(method, settings)? {
            #[cfg(feature = "qpl")]
            Choice::Libqpl(compressor, backend) => {
                let heads = CodeHeads::new(effort, streams);
                let pages = WritePages::new(PageCompressor::new(*compressor), heads);
                (Machine::one_by_one(pages), backend)
            }
            Choice::Own(reason) => {
                let pages = OwnPages::new(effort, streams, CodeHeads::new(effort, streams));
                (
                    Machine::together(pages),
                    because(BackendKind::Software, reason),
                )
            }
        },
        _ => return Err(Unsupported(UnsupportedFault::Method { method })),
    })
}

/// The machine of an encoder whose effort is another one for each packet: see
/// [`Auto::new`](crate::auto::Auto::new) for the methods that there are.
pub(crate) fn stepped_machine(
    method: Method,
    settings: &Settings,
) -> Result<(Machine, Backend), Unsupported> {
    Ok(match method {
        #[cfg(feature = "zstd")]
        Method::Zstd => {
            let stream = zstd::CompressSteps::new()?;
            let plain = Backend::new(BackendKind::Plain);
            (Machine::one_by_one(stream), plain)
        }
        _ => {
            let stream = software::DeflateSteps::new(settings.window);
            let software = Backend::new(BackendKind::Software);
            (Machine::one_by_one(stream), software)
        }
    })
}

/// Makes a decoder for one channel. It reads the output of any encoder settings.
///
/// The receiver does not choose the payloads, so it ignores an accelerator that cannot read the
/// method: libqpl only reads pages of the methods `qpl` and `canned`. A `zlib` stream of a stock
/// QEMU has a window of 32 KiB, the device one of 4 KiB. Our own streams of runs are read run by
/// run with any accelerator except [`Accel::None`].
///
/// Runs and pages that can be read independently are read in parallel on as many processors as the
/// constructing thread may use, with the help of otherwise idle helpers.
///
/// # Errors
///
/// [`Unsupported`] if this build cannot read the method, or if [`Accel::QplHardware`] is not
/// available for `qpl` and `canned`.
pub fn decoder(method: Method, settings: &Settings) -> Result<Box<dyn Decoder>, Unsupported> {
    let accel = settings.accel;
    Ok(match method {
        Method::None => Box::new(Channel::new(none::Raw, Backend::new(BackendKind::Plain))),
        Method::Zlib if accel == Accel::None => Box::new(Channel::new(
            zlib::Inflate::new(),
            Backend::new(BackendKind::Plain),
        )),
        Method::Zlib => {
            let reason = wants_libqpl(accel).then(|| WINDOW.into());
            let backend = because(BackendKind::Software, reason);
            Box::new(Channel::new(software::Inflate::new(), backend))
        }
        #[cfg(not(feature = "zstd"))]
        Method::Zstd => return Err(ZSTD_NOT_BUILT),
        #[cfg(feature = "zstd")]
        Method::Zstd => {
            let reason = wants_libqpl(accel).then(|| NO_ZSTD.into());
            let backend = because(BackendKind::Plain, reason);
            Box::new(Channel::new(zstd::Decompress::new(accel)?, backend))
        }
        Method::Qpl => {
            let (reader, backend) = page_reader(method, accel)?;
            Box::new(Channel::new(paged::qpl::ReadPages::new(reader), backend))
        }
        Method::Canned => {
            let (reader, backend) = page_reader(method, accel)?;
            Box::new(Channel::new(paged::canned::ReadPages::new(reader), backend))
        }
        _ => return Err(Unsupported(UnsupportedFault::Method { method })),
    })
}

/// The reader of independent pages, without libqpl.
#[cfg(not(feature = "qpl"))]
fn page_reader(method: Method, accel: Accel) -> Result<(PageReader, Backend), Unsupported> {
    let backend = match accel {
        Accel::None | Accel::Software => Backend::new(BackendKind::Software),
        Accel::Qpl | Accel::QplSoftware | Accel::Auto => {
            Backend::because(BackendKind::Software, NO_LIBQPL)
        }
        Accel::QplHardware => return Err(refused(method, accel, NO_LIBQPL.into())),
    };
    Ok((PageReader::in_software(), backend))
}

/// The reader of independent pages, on the device if it works.
#[cfg(feature = "qpl")]
fn page_reader(method: Method, accel: Accel) -> Result<(PageReader, Backend), Unsupported> {
    let in_software = |backend| Ok((PageReader::in_software(), backend));
    match accel {
        Accel::None | Accel::Software => in_software(Backend::new(BackendKind::Software)),
        Accel::QplSoftware => in_software(Backend::because(BackendKind::Software, NOT_STRICT)),
        Accel::Qpl | Accel::QplHardware | Accel::Auto => match qpl::hardware(Direction::Decompress)
        {
            Ok(library) => {
                let backend = Backend::new(BackendKind::QplHardware);
                Ok((PageReader::on_hardware(library), backend))
            }
            Err(reason) if accel == Accel::QplHardware => Err(refused(method, accel, reason)),
            Err(reason) => in_software(Backend::because(BackendKind::Software, reason)),
        },
    }
}

/// The deflate backend.
enum Choice {
    #[cfg(feature = "qpl")]
    Libqpl(Box<Compressor>, Backend),
    /// This crate; with a reason if a better backend was requested.
    Own(Option<Arc<str>>),
}

#[cfg(not(feature = "qpl"))]
fn by_libqpl(method: Method, settings: &Settings) -> Result<Choice, Unsupported> {
    match settings.accel {
        Accel::None | Accel::Software => Ok(Choice::Own(None)),
        Accel::Auto => Ok(Choice::Own(Some(NO_LIBQPL.into()))),
        accel @ (Accel::Qpl | Accel::QplHardware | Accel::QplSoftware) => {
            Err(refused(method, accel, NO_LIBQPL.into()))
        }
    }
}

#[cfg(feature = "qpl")]
fn by_libqpl(method: Method, settings: &Settings) -> Result<Choice, Unsupported> {
    let accel = settings.accel;
    let (direction, software): (_, fn() -> _) = match method {
        Method::Canned => (Direction::CompressBodies, qpl::software_bodies),
        _ => (Direction::Compress, qpl::software),
    };
    let unavailable = |reason| refused(method, accel, reason);
    let broken = |status: Status| {
        Unsupported(UnsupportedFault::Library {
            method,
            source: status.to_string().into(),
        })
    };
    let reason = match accel {
        Accel::None | Accel::Software => return Ok(Choice::Own(None)),
        Accel::QplSoftware => None,
        Accel::Qpl | Accel::QplHardware | Accel::Auto => match qpl::hardware(direction) {
            Ok(library) => {
                let compressor = Compressor::on_hardware(library).map_err(broken)?;
                let backend = Backend::new(BackendKind::QplHardware);
                return Ok(Choice::Libqpl(Box::new(compressor), backend));
            }
            Err(reason) if accel == Accel::QplHardware => return Err(unavailable(reason)),
            Err(reason) => Some(reason),
        },
    };
    // This crate compresses better than libqpl's software path.
    if accel == Accel::Auto {
        return Ok(Choice::Own(reason));
    }
    let library = software().map_err(unavailable)?;
    let compressor = Compressor::in_software(library).map_err(broken)?;
    let backend = because(BackendKind::QplSoftware, reason);
    Ok(Choice::Libqpl(Box::new(compressor), backend))
}

const fn wants_libqpl(accel: Accel) -> bool {
    matches!(accel, Accel::Qpl | Accel::QplHardware | Accel::QplSoftware)
}

fn because(engine: BackendKind, reason: Option<Arc<str>>) -> Backend {
    match reason {
        Some(reason) => Backend::because(engine, reason),
        None => Backend::new(engine),
    }
}

fn refused(method: Method, accel: Accel, reason: Arc<str>) -> Unsupported {
    Unsupported(UnsupportedFault::Accel {
        method,
        accel,
        reason,
    })
}

const NO_ZSTD: &str = "libqpl has no zstd";
const WINDOW: &str = "the window of a stock stream is 32 KiB and the IAA's 4 KiB";
#[cfg(feature = "qpl")]
const NOT_STRICT: &str = "libqpl's software path does not notice a page that is cut off";
#[cfg(not(feature = "qpl"))]
const NO_LIBQPL: &str = "this build has no libqpl: it was made without the feature `qpl`";
#[cfg(not(feature = "zstd"))]
const ZSTD_NOT_BUILT: Unsupported = Unsupported(UnsupportedFault::NotBuilt {
    method: Method::Zstd,
    feature: "zstd",
});
