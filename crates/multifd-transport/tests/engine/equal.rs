//! The memory at the destination is that of the source at the moment of switch-over, page by page.

use std::num::NonZeroU8;
use std::sync::atomic::Ordering;

use multifd_transport::Parameters;
use multifd_wire::{Method, PageSize};

use crate::support::{MIB, Place, TestGuest, assert_equal, migrate};

/// Migrates a guest that writes as fast as it can, and compares.
fn check(place: &Place, len_bytes: usize, parameters: &Parameters) {
    let mut guest = TestGuest::new(len_bytes);
    guest.write_everywhere(1, 0.25);
    let outcome = migrate(&guest, place, parameters);
    let statistics = outcome.source.unwrap();
    let received = outcome.destination.unwrap();
    assert!(!guest.gate.is_open(), "the guest stands still here");
    assert!(outcome.vm.runs.load(Ordering::SeqCst), "and runs there");
    assert_equal(&guest.memory, &received.memory);
    assert_eq!(outcome.vm.state, guest.vm().state);
    assert_eq!(
        received.channels,
        usize::from(parameters.multifd_channels.get())
    );
    assert_eq!(received.arrived.normal, statistics.normal);
    assert_eq!(received.arrived.duplicate, statistics.duplicate);
}

#[test]
fn methods() {
    for method in [Method::None, Method::Zlib, Method::Zstd] {
        for place in [Place::unix(), Place::tcp()] {
            let mut parameters = Parameters::default();
            parameters.multifd_compression = method;
            parameters.digest = true;
            check(&place, 8 * MIB, &parameters);
        }
    }
}

#[test]
fn channels() {
    for channels in [1, 2, 3, 4, 8, 16] {
        let mut parameters = Parameters::default();
        parameters.multifd_channels = NonZeroU8::new(channels).unwrap();
        check(&Place::unix(), 8 * MIB, &parameters);
    }
}

#[test]
fn page_sizes() {
    for page_bytes in [4 << 10, 16 << 10, 64 << 10] {
        let mut parameters = Parameters::default();
        parameters.page_size = PageSize::new(page_bytes).unwrap();
        parameters.multifd_compression = Method::Zlib;
        for len_bytes in [MIB, 16 * MIB] {
            check(&Place::unix(), len_bytes, &parameters);
        }
    }
}

#[test]
fn a_quarter_of_a_gibibyte() {
    check(&Place::unix(), 256 * MIB, &Parameters::default());
}
