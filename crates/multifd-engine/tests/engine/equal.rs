//! The memory at the destination is that of the source at the moment of switch-over, page by page.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::thread;

use multifd_codec::{Accel, Streams, encoder};
use multifd_engine::destination::{self, DestinationSettings};
use multifd_engine::dirty::PagemapLog;
use multifd_engine::memory::GuestMemory;
use multifd_engine::source::{self, Guest};
use multifd_engine::{Parameters, ZeroPageDetection};
use multifd_transport::Cancel;
use multifd_transport::incoming::Acceptor;
use multifd_wire::{Method, PageSize};

use testkit::engine::{MIB, Place, TestGuest, TestVm, assert_equal, memory, migrates_whole};

#[test]
fn methods_and_accelerators() {
    let methods = [
        Method::None,
        Method::Zlib,
        Method::Zstd,
        Method::Qpl,
        Method::Canned,
    ];
    for (index, method) in methods.into_iter().enumerate() {
        for accel in [
            Accel::None,
            Accel::Software,
            Accel::Qpl,
            Accel::QplHardware,
            Accel::QplSoftware,
            Accel::Auto,
        ] {
            let mut parameters = Parameters::default();
            parameters.multifd_compression = method;
            parameters.codec.accel = accel;
            parameters.digest = true;
            if let Err(reason) = encoder(method, &parameters.codec) {
                println!("NOT RUN: {method} with {accel}: {reason}");
                continue;
            }
            let place = match index % 2 {
                0 => Place::unix(),
                _ => Place::tcp(),
            };
            migrates_whole(&place, 8 * MIB, &parameters);
        }
    }
}

#[test]
fn several_streams() {
    for method in [Method::Zlib, Method::Zstd] {
        let mut parameters = Parameters::default();
        parameters.multifd_compression = method;
        parameters.codec.accel = Accel::Software;
        parameters.codec.streams = Streams::new(8).unwrap();
        migrates_whole(&Place::unix(), 8 * MIB, &parameters);
    }
}

#[test]
fn efforts_that_are_found_out() {
    for method in [Method::Zlib, Method::Zstd] {
        let mut parameters = Parameters::default();
        parameters.multifd_compression = method;
        parameters.codec.accel = Accel::Software;
        parameters.auto = true;
        parameters.digest = true;
        migrates_whole(&Place::tcp(), 32 * MIB, &parameters);
    }
}

#[test]
fn wherever_zero_pages_are_looked_for() {
    for detection in ZeroPageDetection::ALL {
        let mut parameters = Parameters::default();
        parameters.zero_page_detection = detection;
        migrates_whole(&Place::unix(), 8 * MIB, &parameters);
    }
}

#[test]
fn several_blocks_in_another_order() {
    let mut guest = TestGuest::of(memory(&[("ram", 4 * MIB), ("rom", MIB), ("vga", 2 * MIB)]));
    guest.write_everywhere(1, 0.5);
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
    let mut parameters = Parameters::default();
    parameters.digest = true;
    let theirs = Arc::new(memory(&[("vga", 2 * MIB), ("ram", 4 * MIB), ("rom", MIB)]));
    // Memory that is not fresh: zero pages have to be written.
    for block in theirs.blocks() {
        block.range.write(0, &vec![0xee; MIB]).unwrap();
    }
    thread::scope(|scope| {
        let destination = scope.spawn(|| {
            destination::receive(
                &mut acceptor,
                |_| Ok(Arc::clone(&theirs)),
                &mut TestVm::empty(),
                &DestinationSettings::default(),
                &Cancel::new(),
                &mut |_| {},
            )
        });
        let source = Guest {
            uuid: [7; 16],
            memory: &guest.memory,
            dirty: &mut log,
            vm: &mut guest.vm(),
        };
        source::send(
            &place.address,
            source,
            &parameters,
            &Cancel::new(),
            &mut |_| {},
        )
        .unwrap();
        assert!(destination.join().unwrap().unwrap().digest.is_some());
    });
    assert_equal(&guest.memory, &theirs);
}

#[test]
fn channels() {
    for channels in [1, 2, 3, 4, 8, 16] {
        let mut parameters = Parameters::default();
        parameters.multifd_channels = NonZeroU8::new(channels).unwrap();
        migrates_whole(&Place::unix(), 8 * MIB, &parameters);
    }
}

#[test]
fn page_sizes() {
    for page_bytes in [4 << 10, 16 << 10, 64 << 10] {
        let mut parameters = Parameters::default();
        parameters.page_size = PageSize::new(page_bytes).unwrap();
        parameters.multifd_compression = Method::Zlib;
        for len_bytes in [MIB, 16 * MIB] {
            migrates_whole(&Place::unix(), len_bytes, &parameters);
        }
    }
}

#[test]
fn a_quarter_of_a_gibibyte() {
    migrates_whole(&Place::unix(), 256 * MIB, &Parameters::default());
}
