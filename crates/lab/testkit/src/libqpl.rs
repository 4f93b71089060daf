//! libqpl, a simulated device under it, and channels that use them.

use std::sync::OnceLock;

use iaa_sim::Simulator;
pub use iaa_sim::testing::in_own_process;
use multifd_codec::{
    Accel, Decoder, Encoder, Huffman, Pages, PathCounts, Settings, Streams, decoder, encoder,
};
use multifd_wire::{Method, PageSize};
use qemu_lab::{Part, require_opened};

/// The bytes of a page.
pub const PAGE: usize = PageSize::K4.bytes();

/// Whether libqpl can be opened. If not, the running test is named, and with `CI=true` it fails.
#[track_caller]
pub fn libqpl() -> bool {
    require_opened(Part::Qpl, qpl_sys::Library::open()).is_some()
}

/// libqpl and a healthy device, which all tests of this process share. Tests which change it run in
/// their own.
pub fn healthy_device() -> Option<&'static Simulator> {
    static DEVICE: OnceLock<Simulator> = OnceLock::new();
    libqpl().then(|| {
        DEVICE.get_or_init(|| {
            Simulator::load(&iaa_sim::Settings::default()).expect("Cargo builds the shared object")
        })
    })
}

/// libqpl and a device of this process only.
pub fn device(settings: &iaa_sim::Settings) -> Simulator {
    Simulator::load(settings).expect("Cargo builds the shared object")
}

/// Runs a test in a process of its own, if there is libqpl. `$test` is the function's path in this
/// program.
#[macro_export]
macro_rules! alone {
    ($test:literal, $body:expr) => {
        if $crate::libqpl::libqpl() {
            $crate::libqpl::in_own_process($test, $body);
        }
    };
}

/// Settings with this accelerator.
pub fn with(accel: Accel) -> Settings {
    let mut settings = Settings::default();
    settings.accel = accel;
    settings
}

/// Settings with this accelerator and dynamic Huffman codes.
pub fn dynamic(accel: Accel) -> Settings {
    let mut settings = with(accel);
    settings.huffman = Huffman::Dynamic;
    settings
}

/// The settings with so many streams.
pub fn streams(settings: Settings, streams: u8) -> Settings {
    let mut settings = settings;
    settings.streams = Streams::new(streams).unwrap();
    settings
}

/// An encoder and a decoder at the other end, made with settings of their own.
pub struct Channel {
    /// The sending end.
    pub encoder: Encoder,
    /// The receiving end.
    pub decoder: Box<dyn Decoder>,
    payload: Vec<u8>,
}

impl Channel {
    /// Opens both ends.
    pub fn new(method: Method, sender: &Settings, receiver: &Settings) -> Channel {
        Channel {
            encoder: encoder(method, sender).unwrap(),
            decoder: decoder(method, receiver).unwrap(),
            payload: Vec::new(),
        }
    }

    /// Sends pages of 4 KiB and checks what arrives.
    pub fn carry(&mut self, bytes: &[u8]) -> &[u8] {
        let pages = Pages::private(bytes, PageSize::K4).unwrap();
        self.encoder.encode(&pages, &mut self.payload).unwrap();
        let mut arrived = vec![0xa5; bytes.len()];
        self.decoder
            .decode(&self.payload, PageSize::K4, &mut arrived)
            .unwrap();
        assert!(arrived == bytes, "other pages than were sent");
        &self.payload
    }

    /// Which way the pages went at the sending and at the receiving end.
    pub fn counts(&self) -> (PathCounts, PathCounts) {
        (self.encoder.counts(), self.decoder.counts())
    }
}
