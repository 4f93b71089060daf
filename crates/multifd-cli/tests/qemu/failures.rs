//! What breaks in the middle of a migration: the source's guest goes on, what broke is said, and
//! the next migration succeeds.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use qemu_lab::{Chain, Config, Guest, Hop, LabError, Parameters, Qemu, QemuBinary, Version};

use multifd_wire::{ChannelReceiver, Event, Hello, Limits};

use super::relays::{Relay, folder, unix};

/// No step of a test takes nearly as long.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Slow enough to be broken in the middle.
const SLOW: u64 = 4 << 20;

/// Two relays with zlib between them, for as many migrations as there are; each QEMU that waits for
/// a guest does so at `destination`.
pub struct Lab {
    pub binary: QemuBinary,
    pub folder: tempfile::TempDir,
    pub chain: Chain,
    pub near: Relay,
    pub far: Relay,
}

impl Lab {
    #[track_caller]
    pub fn new(version: Version) -> Option<Lab> {
        let binary = QemuBinary::require(version)?;
        let chain = Chain::start(&binary, &Guest::default(), "q35").unwrap();
        let folder = folder();
        let (near, far) = (near(folder.path()), far(folder.path()));
        Some(Lab {
            binary,
            folder,
            chain,
            near,
            far,
        })
    }

    fn parameters() -> Parameters {
        Parameters {
            return_path: true,
            ..Parameters::multifd(2, "none")
        }
    }

    /// Begins a slow migration, and returns the destination when some of the memory has been sent.
    fn begin(&mut self) -> Qemu {
        self.begin_to(1 << 20)
    }

    /// Begins a slow migration, and returns the destination when this many bytes have been sent.
    pub fn begin_to(&mut self, transferred: u64) -> Qemu {
        let slow = Parameters {
            max_bandwidth: Some(SLOW),
            ..Self::parameters()
        };
        let mut destination = Config::new(&self.binary, &Guest::default())
            .incoming()
            .paused()
            .start()
            .unwrap();
        destination.set_migration(&Self::parameters()).unwrap();
        let incoming = destination.socket_path("incoming");
        destination
            .listen(&format!("unix:{}", incoming.display()))
            .unwrap();
        self.wait_here(&incoming);
        let source = self.chain.current();
        source.set_migration(&slow).unwrap();
        source.migrate(&self.near.address).unwrap();
        let deadline = Instant::now() + LIMIT;
        while source.migration().unwrap().ram.transferred < transferred {
            assert!(Instant::now() < deadline, "{:?}", source.migration());
            thread::sleep(Duration::from_millis(2));
        }
        destination
    }

    /// The relays find the destination by a fixed name.
    fn wait_here(&self, socket: &Path) {
        let name = self.folder.path().join("destination");
        let _ = std::fs::remove_file(&name);
        symlink(socket, name).unwrap();
    }

    /// The migration ends with one of `status`, and the guest runs on as if nothing had been.
    pub fn source_goes_on(&mut self, status: &[&str]) {
        let source = self.chain.current();
        let ended = source.wait_migration(LIMIT).unwrap();
        assert!(status.contains(&ended.status.as_str()), "{ended:?}");
        source.check_goes_on(LIMIT).unwrap();
    }

    /// The same relays carry the next migration.
    pub fn next_succeeds(&mut self) {
        // QEMU says that a migration has failed a moment before it has done with it, and crashes if
        // the next one begins in between (10.0.2: "migration_iteration_finish: Unknown ending
        // state"). Nothing tells when that is over.
        thread::sleep(Duration::from_millis(500));
        let hop = Hop::to(&self.binary, &Self::parameters());
        let name = self.folder.path().join("destination");
        let deadline = Instant::now() + LIMIT;
        loop {
            let hopped = self.chain.hop_via(&hop, |listening| {
                let _ = std::fs::remove_file(&name);
                symlink(listening.strip_prefix("unix:").unwrap(), &name).unwrap();
                self.near.address.clone()
            });
            match hopped {
                Ok(_) => return,
                // Or it refuses the next one for as long as that takes.
                Err(LabError::Qmp { .. }) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(100));
                }
                Err(error) => panic!("{}: {error:?}", self.binary),
            }
        }
    }
}

pub fn near(folder: &Path) -> Relay {
    Relay::start(folder, "near", &unix(folder, "far"), "zlib", &[])
}

pub fn far(folder: &Path) -> Relay {
    Relay::start(folder, "far", &unix(folder, "destination"), "none", &[])
}

fn on_each_release(test: fn(Lab)) {
    for version in [Version::V7_2, Version::V10_0, Version::V11_1] {
        if let Some(lab) = Lab::new(version) {
            test(lab);
        }
    }
}

/// A complaint that says where: a channel and a side.
fn assert_names_a_place(complaint: &str) {
    let place = complaint.contains("channel")
        && (complaint.contains("source side") || complaint.contains("destination side"));
    assert!(place, "{complaint}");
}

#[test]
fn the_near_relay_is_killed() {
    on_each_release(|mut lab| {
        let _destination = lab.begin();
        lab.near.kill();
        lab.source_goes_on(&["failed"]);
        assert_names_a_place(&lab.far.next_complaint());
        lab.near = near(lab.folder.path());
        lab.next_succeeds();
    });
}

#[test]
fn the_far_relay_is_killed() {
    on_each_release(|mut lab| {
        let _destination = lab.begin();
        lab.far.kill();
        lab.source_goes_on(&["failed"]);
        assert_names_a_place(&lab.near.next_complaint());
        lab.far = far(lab.folder.path());
        lab.next_succeeds();
    });
}

#[test]
fn the_destination_dies() {
    on_each_release(|mut lab| {
        drop(lab.begin());
        lab.source_goes_on(&["failed"]);
        assert_names_a_place(&lab.far.next_complaint());
        assert_names_a_place(&lab.near.next_complaint());
        lab.next_succeeds();
    });
}

#[test]
fn the_migration_is_cancelled() {
    on_each_release(|mut lab| {
        let _destination = lab.begin();
        lab.chain.current().cancel_migration().unwrap();
        // It depends on which of its sockets QEMU looks at first.
        lab.source_goes_on(&["cancelled", "failed"]);
        let complaint = lab.near.next_complaint();
        assert!(complaint.contains("cancelled"), "{complaint}");
        lab.next_succeeds();
    });
}

/// Which byte of a multifd channel is changed on the link between the relays.
#[derive(Clone, Copy)]
enum Target {
    /// The first of the first packet's magic.
    Magic,
    /// The one with the type of the first deflate block, after the two bytes of the zlib header.
    /// It becomes the type that does not exist.
    DeflateBlock,
}

/// Looks for the target in a channel that comes in pieces, and changes it on its way. Nothing is
/// held back: a relay passes its main channel on as far as its channels have come.
struct Corrupter {
    target: Target,
    receiver: ChannelReceiver,
    passed: usize,
    place: Option<usize>,
}

impl Corrupter {
    fn new(target: Target) -> Corrupter {
        let receiver = ChannelReceiver::new(Limits::default());
        Corrupter {
            target,
            receiver,
            passed: 0,
            place: None,
        }
    }

    /// Takes the next piece; whether the target was in it, and has been changed.
    fn corrupts(&mut self, piece: &mut [u8]) -> bool {
        let (place, flip) = match self.target {
            Target::Magic => (Some(Hello::LEN), 0x40),
            Target::DeflateBlock => (self.first_payload(piece).map(|at| at + 2), 0x06),
        };
        let begin = self.passed;
        self.passed += piece.len();
        match place.and_then(|place| piece.get_mut(place.checked_sub(begin)?)) {
            Some(byte) => *byte |= flip,
            None => return false,
        }
        true
    }

    /// Where the first payload begins in the channel, once its packet has come.
    fn first_payload(&mut self, piece: &[u8]) -> Option<usize> {
        let mut rest = piece;
        while self.place.is_none() {
            let event = self.receiver.push(&mut rest).unwrap()?;
            if matches!(event, Event::Packet(packet) if packet.payload_len() > 0) {
                self.place = Some(self.passed + piece.len() - rest.len());
            }
        }
        self.place
    }
}

#[test]
fn a_byte_is_corrupted() {
    for (target, cause) in [(Target::Magic, "magic"), (Target::DeflateBlock, "decoded")] {
        let Some(mut lab) = Lab::new(Version::V10_0) else {
            return;
        };
        // The relay in front dials the corrupter instead of the far relay, once.
        let folder = lab.folder.path().to_owned();
        let corrupter = UnixListener::bind(folder.join("corrupter")).unwrap();
        let far_path = folder.join("far");
        thread::spawn(move || {
            for stream in corrupter.incoming() {
                let (stream, far) = (stream.unwrap(), UnixStream::connect(&far_path).unwrap());
                pump(
                    stream.try_clone().unwrap(),
                    far.try_clone().unwrap(),
                    Some(Corrupter::new(target)),
                );
                pump(far, stream, None);
            }
        });
        let front = Relay::start(&folder, "front", &unix(&folder, "corrupter"), "zlib", &[]);
        let near = std::mem::replace(&mut lab.near, front);
        let destination = lab_begin_unobserved(&mut lab);
        lab.source_goes_on(&["failed"]);
        let complaint = lab.far.next_complaint();
        assert_names_a_place(&complaint);
        assert!(complaint.contains(cause), "{complaint}");
        assert_names_a_place(&lab.near.next_complaint());
        drop(destination);
        lab.near = near;
        lab.next_succeeds();
    }
}

/// Begins a migration that may fail before anything can be seen of it.
fn lab_begin_unobserved(lab: &mut Lab) -> Qemu {
    let mut destination = Config::new(&lab.binary, &Guest::default())
        .incoming()
        .paused()
        .start()
        .unwrap();
    destination.set_migration(&Lab::parameters()).unwrap();
    let incoming = destination.socket_path("incoming");
    destination
        .listen(&format!("unix:{}", incoming.display()))
        .unwrap();
    lab.wait_here(&incoming);
    let near = lab.near.address.clone();
    let source = lab.chain.current();
    source.set_migration(&Lab::parameters()).unwrap();
    source.migrate(&near).unwrap();
    destination
}

/// Passes bytes on in a thread of its own; `corrupter` works on the first multifd channel that it
/// sees.
fn pump(mut from: UnixStream, mut to: UnixStream, mut corrupter: Option<Corrupter>) {
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            if count == 0 {
                break;
            }
            let bytes = &mut buffer[..count];
            if bytes.starts_with(b"QEVM") {
                corrupter = None;
            }
            if corrupter
                .as_mut()
                .is_some_and(|corrupter| corrupter.corrupts(bytes))
            {
                corrupter = None;
            }
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    });
}
