//! Strangers: connections that belong to no migration.

use std::net::Shutdown;
use std::thread::Scope;
use std::time::Duration;

use crate::net::{Address, Socket, Stop};
use crate::plan::hello;
use crate::preface::preface;
use crate::random::Random;

/// A stranger's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// Nothing.
    Nothing,
    /// The start of a main connection.
    Qevm,
    /// The beginning of a hello.
    HalfHello(usize),
    /// A whole hello of a VM that does not migrate.
    OtherHello,
    /// The start of a TLS connection.
    Tls,
    /// An HTTP request.
    Http,
    /// Noise.
    Garbage,
    /// One byte at a time, slowly.
    Drops,
    /// Nothing, and it closes at once.
    Goodbye,
    /// The start of a trunk, and no more.
    HalfPreface(usize),
    /// The start of a trunk with an impossible length.
    LongPreface,
    /// The start of a trunk with noise after it.
    WrongPreface,
    /// A channel of a migration that has not begun.
    OtherPreface,
    /// The main channel of a migration whose channels never come.
    MainPreface,
    /// A whole hello of the same VM, as from an earlier attempt, and it closes at once.
    StaleHello([u8; 16]),
}

/// A stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger {
    /// Its bytes.
    pub says: Says,
    /// The time after which it connects. Strangers without a delay connect before the source.
    pub delay: Duration,
    /// The time for which it stays. `None` for the whole run.
    pub stays: Option<Duration>,
}

impl Stranger {
    /// Connects and stays. The run's end closes the connection.
    pub fn come<'s>(&self, scope: &'s Scope<'s, '_>, address: &Address, stop: &'s Stop) {
        let (stranger, address) = (*self, address.clone());
        if self.delay.is_zero() {
            let socket = stranger.knock(&address);
            scope.spawn(move || stranger.stay(socket, stop));
        } else {
            scope.spawn(move || {
                stop.sleep(stranger.delay);
                let socket = stranger.knock(&address);
                stranger.stay(socket, stop);
            });
        }
    }

    fn knock(&self, address: &Address) -> Option<Socket> {
        let socket = Socket::connect(address, false).ok()?;
        let said = match self.says {
            Says::Nothing | Says::Goodbye | Says::Drops => Vec::new(),
            Says::Qevm => b"QEVM".to_vec(),
            Says::HalfHello(bytes) => hello([0; 16], 0)[..bytes].to_vec(),
            Says::OtherHello => hello([0x5a; 16], 0).to_vec(),
            Says::StaleHello(uuid) => hello(uuid, 0).to_vec(),
            Says::Tls => {
                let mut bytes = b"\x16\x03\x01\0\xc8\x01\0\0\xc4\x03\x03".to_vec();
                bytes.resize(205, 7);
                bytes
            }
            Says::HalfPreface(bytes) => preface(9, true)[..bytes].to_vec(),
            Says::LongPreface => b"MFDT\xff\xff and more".to_vec(),
            Says::WrongPreface => {
                let mut bytes = b"MFDT\x01\x2c".to_vec();
                bytes.extend((0..300_u32).map(|n| (n * 179 + 31) as u8));
                bytes
            }
            Says::OtherPreface => preface(9, false),
            Says::MainPreface => preface(8, true),
            Says::Http => b"GET / HTTP/1.1\r\nHost: migration\r\n\r\n".to_vec(),
            Says::Garbage => (0..300_u32).map(|n| (n * 179 + 31) as u8).collect(),
        };
        // The peer may have closed already.
        let _ = socket.write_all(&said);
        if matches!(self.says, Says::Goodbye | Says::StaleHello(_)) {
            socket.shutdown(Shutdown::Both);
            return None;
        }
        Some(socket)
    }

    fn stay(&self, socket: Option<Socket>, stop: &Stop) {
        let Some(socket) = socket else {
            return;
        };
        let socket = stop.keep(socket);
        if self.says == Says::Drops {
            for byte in b"\x11\x22\x33\x44\0\0\0\x01" {
                stop.sleep(Duration::from_millis(30));
                if socket.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        }
        match self.stays {
            Some(time) => stop.sleep(time),
            None => stop.sleep(Duration::from_secs(3600)),
        }
    }
}

impl Stranger {
    /// A random stranger for a trunk.
    #[must_use]
    pub fn at_a_trunk(random: &mut Random) -> Stranger {
        let says = match random.below(7) {
            0 => Says::HalfPreface(random.between(1, 57) as usize),
            1 => Says::LongPreface,
            2 => Says::WrongPreface,
            3 => Says::OtherPreface,
            4 => Says::MainPreface,
            _ => return Self::any(random),
        };
        Stranger {
            says,
            ..Self::any(random)
        }
    }

    /// A random stranger for a QEMU leg.
    #[must_use]
    pub fn any(random: &mut Random) -> Stranger {
        let says = match random.below(9) {
            0 => Says::Nothing,
            1 => Says::Qevm,
            2 => Says::HalfHello(random.between(1, 63) as usize),
            3 => Says::OtherHello,
            4 => Says::Tls,
            5 => Says::Http,
            6 => Says::Garbage,
            7 => Says::Drops,
            _ => Says::Goodbye,
        };
        Stranger {
            says,
            delay: Duration::from_millis(random.pick(&[0, 0, 1, 2, 5, 20])),
            stays: random
                .percent(30)
                .then(|| Duration::from_millis(random.below(60))),
        }
    }
}
