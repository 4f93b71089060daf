//! What moving bytes takes beside the codec. Each constant names the measurement that it is from,
//! or says that it is an estimate.

use super::model::Moving;
use super::rates::Socket;

/// How the guest's QEMUs are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// QEMU to QEMU, with `multifd-compression none`.
    Direct,
    /// QEMU, a relay on each host with a TLS trunk in between, QEMU.
    Relays,
}

/// What was measured on this host.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// A byte through a socket.
    pub socket: Socket,
    /// Seconds for a byte that is looked at for zeros.
    pub zero_test: f64,
}

impl Topology {
    /// Its costs on a host like this.
    #[must_use]
    pub const fn moving(self, host: &Host) -> Moving {
        let Host { socket, zero_test } = *host;
        let send = socket.sending;
        let receive = socket.receiving;
        let zero_page = zero_test * 4096.0 + ZERO_PAGE;
        let qemu = QEMU_PAGE_BYTE / 2.0 + zero_test;
        match self {
            Self::Direct => Moving {
                channel: 0.0,
                source: qemu,
                destination: QEMU_PAGE_BYTE / 2.0,
                wire: if send > receive { send } else { receive },
                zero_page,
                setup: SETUP,
                round: ROUND,
                switch_over: SWITCH_OVER,
                queued: QUEUED,
            },
            Self::Relays => Moving {
                channel: if send > receive { send } else { receive },
                source: qemu + send + receive,
                destination: QEMU_PAGE_BYTE / 2.0 + send + receive,
                wire: receive + TLS_BYTE,
                zero_page: zero_page + RELAYED_ZERO_PAGE,
                setup: SETUP + RELAY_SETUP,
                round: ROUND,
                switch_over: SWITCH_OVER,
                queued: QUEUED,
            },
        }
    }
}

/// The part of a link's bits that are payload: 1448 of the 1514 bytes of an Ethernet frame, with
/// IPv4, TCP and its time stamps.
pub const PAYLOAD_OF_LINK: f64 = 1448.0 / 1514.0;

// The next two are from `cargo xtask bench qemu --memory 384 --dirty 1000` on the loopback: 302 MB
// of pages, machine B, load 8.

/// Seconds of both QEMUs together for a byte of pages, beside sockets and zero test: 1.46 ns in all
/// through relays. A good part of it is memory that the destination touches for the first time.
const QEMU_PAGE_BYTE: f64 = 1.0e-9;
/// Seconds for a byte of a TLS record, at each end: two relays with `none` took 1.36 ns, of which
/// sockets are 0.8.
const TLS_BYTE: f64 = 0.3e-9;

// Estimates, which no measurement has taken apart. In a migration of a second or more they matter
// little.

/// Seconds for a zero page beside the test: its bit, and its offset in a packet.
const ZERO_PAGE: f64 = 0.1e-6;
/// What two relays add to that.
const RELAYED_ZERO_PAGE: f64 = 0.05e-6;
/// Seconds from the command until the first page.
const SETUP: f64 = 0.05;
/// What two relays add to that: connections, handshakes, prefaces.
const RELAY_SETUP: f64 = 0.05;
/// Seconds of a round beside its pages: the dirty bitmap, and a SYNC of all channels.
const ROUND: f64 = 0.01;
/// Seconds of the switch-over beside its pages.
const SWITCH_OVER: f64 = 0.02;

/// Measured: bytes that wait in the buffers of a channel. At 100 Mbit/s and 300 pages a second the
/// guest stood still for 0.21 s longer than its last round took, with 2 channels of `none`.
const QUEUED: f64 = 1.3e6;

/// Bytes of pages a second that an IAA compresses: 12.0 GB/s through four devices with QEMU's `qpl`
/// and 4 channels, in the published rows (see `published`).
pub const IAA_BYTES_PER_S: f64 = 3.0e9;
/// Seconds of a channel's thread for a byte that a device compresses: jobs are prepared and waited
/// for. From the published row of `qpl` with 2 channels, where no device was busy.
pub const IAA_JOB_BYTE: f64 = 0.113e-9;
