//! The costs of moving bytes, without the codec. The comment at each constant names its
//! measurement, or says that it is an estimate.

use super::model::Moving;
use super::rates::Socket;

/// The connection between the guest's two QEMUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    /// QEMU to QEMU, with `multifd-compression none`.
    Direct,
    /// QEMU, a relay on each host with a TLS trunk in between, QEMU.
    Relays,
}

/// The measurements of this host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    /// The costs of a socket.
    pub socket: Socket,
    /// Seconds of the zero test for a byte.
    pub zero_test: f64,
}

impl Topology {
    /// The costs of this topology on such a host.
    #[must_use]
    pub(crate) const fn moving(self, host: &Host) -> Moving {
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
                queued_bytes: QUEUED,
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
                queued_bytes: QUEUED,
            },
        }
    }
}

/// The payload's part of a link's bytes: 1448 of the 1514 bytes of an Ethernet frame, with IPv4,
/// TCP and its time stamps.
pub(crate) const PAYLOAD_OF_LINK: f64 = 1448.0 / 1514.0;

// The next two constants are from `cargo xtask bench qemu --memory 384 --dirty 1000` on the
// loopback: 302 MB of pages, machine B, load 8.

/// Seconds of both QEMUs together for a byte of pages, without sockets and zero test. With them it
/// is 1.46 ns through relays. A good part is for memory that the destination touches for the first
/// time.
const QEMU_PAGE_BYTE: f64 = 1.0e-9;
/// Seconds for a byte of a TLS record, at each end. Two relays with `none` took 1.36 ns, 0.8 ns of
/// them for sockets.
const TLS_BYTE: f64 = 0.3e-9;

// The next constants are estimates. They matter little in a migration of a second or more.

/// Seconds for a zero page without the test: for its bit, and for its offset in a packet.
const ZERO_PAGE: f64 = 0.1e-6;
/// Seconds that two relays add to this.
const RELAYED_ZERO_PAGE: f64 = 0.05e-6;
/// Seconds from the command until the first page.
const SETUP: f64 = 0.05;
/// Seconds that two relays add to this: for connections, handshakes and prefaces.
const RELAY_SETUP: f64 = 0.05;
/// Seconds of a round without its pages: for the dirty bitmap, and for a SYNC of all channels.
const ROUND: f64 = 0.01;
/// Seconds of the switch-over without its pages.
const SWITCH_OVER: f64 = 0.02;

/// Bytes that wait in the buffers of a channel. Measured: with 2 channels of `none` at 100 Mbit/s
/// and 300 pages a second the downtime exceeded the last round's time by 0.21 s.
const QUEUED: f64 = 1.3e6;

/// Bytes of pages a second that one IAA compresses. Published: 12.0 GB/s with four devices, QEMU's
/// `qpl` and 4 channels (see `published`).
pub(crate) const IAA_BYTES_PER_S: f64 = 3.0e9;
/// Seconds of a channel's thread for a byte that a device compresses: the thread prepares jobs and
/// waits for them. From the published row of `qpl` with 2 channels, in which the devices were not
/// the limit.
pub(crate) const IAA_JOB_BYTE: f64 = 0.113e-9;
