//! One suite, run for every method: the requirements on all codecs, see `suite`.

#[cfg(feature = "zstd")]
use multifd_codec::ZstdLevel;
use multifd_codec::{Accel, Effort, Huffman, Settings, Streams, WindowSize, ZlibLevel};
use multifd_wire::Method;
use testkit::suite::Subject;

testkit::conformance! {
    none zlib zlib_software qpl canned
    zlib_streams zlib_software_streams
}
#[cfg(feature = "zstd")]
testkit::conformance! {
    zstd zstd_streams
}

fn subject(method: Method, settings: Vec<Settings>) -> Option<Subject> {
    Some(Subject {
        method,
        settings,
        damage_every: 1,
    })
}

fn none() -> Option<Subject> {
    subject(Method::None, vec![Settings::default()])
}

fn zlib() -> Option<Subject> {
    let levels = [1].into_iter().chain(0..=ZlibLevel::MAX.value());
    let settings = levels.map(|level| {
        let mut settings = Settings::default();
        settings.zlib_level = ZlibLevel::new(level).unwrap();
        settings
    });
    subject(Method::Zlib, settings.collect())
}

/// This crate's own deflate.
fn zlib_software() -> Option<Subject> {
    software([1].into())
}

fn zlib_software_streams() -> Option<Subject> {
    software(STREAMS.into())
}

fn software(streams: Vec<u8>) -> Option<Subject> {
    let mut all = Vec::new();
    for streams in streams {
        for window in WindowSize::ALL {
            for effort in Effort::ALL {
                let mut settings = Settings::default();
                settings.accel = Accel::Software;
                settings.streams = Streams::new(streams).unwrap();
                (settings.window, settings.effort) = (window, effort);
                all.push(settings);
            }
        }
    }
    subject(Method::Zlib, all)
}

#[cfg(feature = "zstd")]
fn zstd() -> Option<Subject> {
    let levels = [1].into_iter().chain(0..=ZstdLevel::MAX.value());
    let settings = levels.map(|level| {
        let mut settings = Settings::default();
        settings.zstd_level = ZstdLevel::new(level).unwrap();
        settings
    });
    subject(Method::Zstd, settings.collect())
}

fn qpl() -> Option<Subject> {
    let codes = [Huffman::Fixed, Huffman::Dynamic];
    let settings = codes.into_iter().flat_map(|huffman| {
        own_streams().map(move |mut settings| {
            settings.huffman = huffman;
            settings
        })
    });
    subject(Method::Qpl, settings.collect())
}

fn canned() -> Option<Subject> {
    subject(Method::Canned, own_streams().collect())
}

/// This crate's own deflate under all its names, with various numbers of streams.
fn own_streams() -> impl Iterator<Item = Settings> {
    let accels = [Accel::None, Accel::Software].into_iter();
    accels
        .zip([1, 16])
        .chain([(Accel::Software, 128)])
        .map(|(accel, streams)| {
            let mut settings = Settings::default();
            settings.accel = accel;
            settings.streams = Streams::new(streams).unwrap();
            settings
        })
}

/// Numbers of streams for a packet of 128 pages, from few to many, including fewer pages than
/// streams.
const STREAMS: [u8; 6] = [16, 2, 4, 8, 32, 128];

fn streams(method: Method) -> Option<Subject> {
    let settings = STREAMS.map(|streams| {
        let mut settings = Settings::default();
        settings.streams = Streams::new(streams).unwrap();
        settings
    });
    subject(method, settings.into())
}

fn zlib_streams() -> Option<Subject> {
    streams(Method::Zlib)
}

#[cfg(feature = "zstd")]
fn zstd_streams() -> Option<Subject> {
    streams(Method::Zstd)
}

/// Methods that are not built in are reported as such.
#[test]
fn methods_without_a_codec() {
    for method in [Method::Uadk, Method::Qatzip] {
        let encoder = multifd_codec::encoder(method, &Settings::default());
        let decoder = multifd_codec::decoder(method, &Settings::default());
        for error in [encoder.err(), decoder.err()] {
            assert_eq!(
                error.unwrap().to_string(),
                format!("no codec for the {method} method")
            );
        }
    }
}

/// The error for a method that was left out of the build names its feature.
#[cfg(not(feature = "zstd"))]
#[test]
fn a_method_that_was_not_built() {
    let encoder = multifd_codec::encoder(Method::Zstd, &Settings::default());
    let decoder = multifd_codec::decoder(Method::Zstd, &Settings::default());
    for error in [encoder.err(), decoder.err()] {
        let error = error.unwrap();
        assert!(!error.is_method());
        let words = "this build cannot use the zstd method: it was made without the feature `zstd`";
        assert_eq!(error.to_string(), words);
    }
}

/// Without libqpl its accelerators are refused, and `auto` uses software and gives the reason.
#[cfg(not(feature = "qpl"))]
#[test]
fn libqpl_was_not_built() {
    let why = "this build has no libqpl: it was made without the feature `qpl`";
    let mut settings = Settings::default();
    for method in [Method::Zlib, Method::Qpl, Method::Canned] {
        settings.accel = Accel::Qpl;
        let refused = multifd_codec::encoder(method, &settings).err().unwrap();
        assert!(refused.to_string().contains(why), "{refused}");
        settings.accel = Accel::Auto;
        let encoder = multifd_codec::encoder(method, &settings).unwrap();
        assert_eq!(encoder.backend().reason(), Some(why));
    }
}
