//! One suite, run for every method: what all codecs have to do, see `suite`.

#[path = "deflate/pages.rs"]
mod pages;
mod suite;

use multifd_codec::{Accel, Settings, Streams, ZlibLevel, ZstdLevel};
use multifd_wire::Method;
use suite::Subject;

macro_rules! conformance {
    ($subject:ident: $($test:ident)*) => {
        mod $subject {
            $(
                #[test]
                fn $test() {
                    crate::suite::$test(&crate::$subject());
                }
            )*
        }
    };
    ($($subject:ident)*) => {
        $(
            conformance! { $subject:
                both_ends_name_their_method
                round_trip
                one_page
                pages_are_counted
                full_batches_of_the_worst_pages
                zero_pages
                an_empty_batch_leaves_the_stream_alone
                page_sizes
                a_thousand_packets
                all_settings
                truncation
                corruption
                garbage
                more_or_fewer_pages_than_there_are
                a_buffer_that_is_no_packets_pages
                a_guest_that_keeps_writing
            }
        )*
    };
}

conformance! { none zlib zstd zlib_streams zstd_streams }

fn none() -> Subject {
    Subject {
        method: Method::None,
        settings: vec![Settings::default()],
    }
}

fn zlib() -> Subject {
    let levels = [1].into_iter().chain(0..=ZlibLevel::MAX.value());
    Subject {
        method: Method::Zlib,
        settings: levels
            .map(|level| {
                let mut settings = Settings::default();
                settings.zlib_level = ZlibLevel::new(level).unwrap();
                settings
            })
            .collect(),
    }
}

fn zstd() -> Subject {
    let levels = [1].into_iter().chain(0..=ZstdLevel::MAX.value());
    Subject {
        method: Method::Zstd,
        settings: levels
            .map(|level| {
                let mut settings = Settings::default();
                settings.zstd_level = ZstdLevel::new(level).unwrap();
                settings
            })
            .collect(),
    }
}

/// What a packet of 128 pages can be split into, from few to many, with no more pages than streams too.
const STREAMS: [u8; 6] = [16, 2, 4, 8, 32, 128];

fn streams(method: Method) -> Subject {
    Subject {
        method,
        settings: STREAMS
            .map(|streams| {
                let mut settings = Settings::default();
                settings.streams = Streams::new(streams).unwrap();
                settings.accel = Accel::Auto;
                settings
            })
            .into(),
    }
}

fn zlib_streams() -> Subject {
    streams(Method::Zlib)
}

fn zstd_streams() -> Subject {
    streams(Method::Zstd)
}

/// The methods that are not built in say so.
#[test]
fn methods_without_a_codec() {
    for method in [Method::Qpl, Method::Uadk, Method::Qatzip, Method::Canned] {
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
