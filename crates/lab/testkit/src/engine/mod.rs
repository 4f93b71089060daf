//! Guests without a hypervisor, for the engines: memory, and threads that write it.

mod writes;

pub use writes::{PAGE, no_write_is_lost};

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use multifd_engine::destination::{self, DestinationSettings, Offer, Received};
use multifd_engine::dirty::{DirtyLog, PagemapLog};
use multifd_engine::memory::{GuestMemory, MappedMemory, Mapping};
use multifd_engine::source::{self, Guest, SourceFailure};
use multifd_engine::{Failure, Parameters, Progress, Statistics, VmError, VmHandle};
use multifd_transport::incoming::Acceptor;
use multifd_transport::{Address, Cancel};
use multifd_wire::BlockName;

use crate::pages::Random;

/// A mebibyte.
pub const MIB: usize = 1 << 20;

/// What stops and starts a guest's threads.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    over: bool,
    inside: usize,
}

impl Gate {
    /// Asked by a thread of the guest between two steps; `false`: it is to end.
    fn pass(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.closed && !state.over {
            state.inside -= 1;
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |state| state.closed && !state.over)
                .unwrap();
            state.inside += 1;
        }
        !state.over
    }

    fn change(&self, change: impl FnOnce(&mut GateState)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn close(&self) {
        let mut state = self.state.lock().unwrap();
        state.closed = true;
        drop(
            self.changed
                .wait_while(state, |state| state.inside > 0)
                .unwrap(),
        );
    }

    /// Whether the guest runs.
    pub fn is_open(&self) -> bool {
        !self.state.lock().unwrap().closed
    }
}

/// A guest that runs in threads of this process.
#[derive(Debug)]
pub struct TestGuest {
    /// Its memory.
    pub memory: Arc<MappedMemory>,
    /// What stops its threads.
    pub gate: Arc<Gate>,
    /// How many steps its threads have made.
    pub steps: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl TestGuest {
    /// A guest of one block with a mix of pages in it: one third zero, one third noise, one third
    /// text.
    pub fn new(len_bytes: usize) -> Self {
        Self::of(memory(&[("ram", len_bytes)]))
    }

    /// As [`new`](Self::new), in memory of any blocks.
    pub fn of(memory: MappedMemory) -> Self {
        for block in memory.blocks() {
            for page in 0..block.range.len_bytes() / 4096 {
                let mut random = Random::new(page as u64);
                let bytes: Vec<u8> = match page % 3 {
                    0 => continue,
                    1 => (0..4096).map(|_| random.byte()).collect(),
                    _ => format!("line {page} of a guest's memory\n")
                        .bytes()
                        .cycle()
                        .take(4096)
                        .collect(),
                };
                block.range.write(page as u64 * 4096, &bytes).unwrap();
            }
        }
        Self::of_untouched(memory)
    }

    /// A guest whose memory stays as it is.
    pub fn of_untouched(memory: MappedMemory) -> Self {
        Self {
            memory: Arc::new(memory),
            gate: Arc::default(),
            steps: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// A thread that runs `step` again and again, unless the guest is stopped.
    pub fn run(&mut self, mut step: impl FnMut(&MappedMemory) + Send + 'static) {
        let (memory, gate, steps) = (
            Arc::clone(&self.memory),
            Arc::clone(&self.gate),
            Arc::clone(&self.steps),
        );
        self.gate.change(|state| state.inside += 1);
        self.threads.push(thread::spawn(move || {
            while gate.pass() {
                step(&memory);
                steps.fetch_add(1, Ordering::Relaxed);
            }
            gate.change(|state| state.inside -= 1);
        }));
    }

    /// A thread that writes words, and now and then zeros a page, all over the first `share` of
    /// memory as fast as it can.
    pub fn write_everywhere(&mut self, seed: u64, share: f64) {
        let mut random = Random::new(seed);
        self.run(move |memory| {
            let range = memory.mappings()[0].1.range();
            let pages = (range.len_bytes() as f64 / 4096.0 * share) as usize;
            for _ in 0..64 {
                let offset = random.below(pages.max(1)) as u64 * 4096;
                if random.below(16) == 0 {
                    range.clear(offset, 4096).unwrap();
                } else {
                    let word = random.below(512) as u64 * 8;
                    range
                        .write(offset + word, &random.next().to_ne_bytes())
                        .unwrap();
                }
            }
        });
    }

    /// The VM around this guest.
    pub fn vm(&self) -> TestVm {
        TestVm {
            gate: Arc::clone(&self.gate),
            state: b"device state".repeat(20_000),
            runs: Arc::default(),
        }
    }
}

impl Drop for TestGuest {
    fn drop(&mut self) {
        self.gate.change(|state| state.over = true);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// The VM of a [`TestGuest`], or one at a destination that is only seen to run.
#[derive(Clone, Debug)]
pub struct TestVm {
    gate: Arc<Gate>,
    /// The state of its devices.
    pub state: Vec<u8>,
    /// Whether it was resumed.
    pub runs: Arc<AtomicBool>,
}

impl TestVm {
    /// A VM that waits for a guest.
    pub fn empty() -> Self {
        Self {
            gate: Arc::default(),
            state: Vec::new(),
            runs: Arc::default(),
        }
    }
}

impl VmHandle for TestVm {
    fn pause(&mut self) -> Result<(), VmError> {
        self.gate.close();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmError> {
        self.gate.change(|state| state.closed = false);
        self.runs.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        Ok(self.state.clone())
    }

    fn load_device_state(&mut self, state: &[u8]) -> Result<(), VmError> {
        self.state = state.to_vec();
        Ok(())
    }
}

/// The name of a RAM block.
pub fn name(name: &str) -> BlockName {
    BlockName::new(name.as_bytes()).unwrap()
}

/// Memory of these blocks, by name and length in bytes.
pub fn memory(blocks: &[(&str, usize)]) -> MappedMemory {
    let block =
        |&(of, len_bytes): &(&str, usize)| (name(of), Mapping::memfd(of, len_bytes).unwrap());
    MappedMemory::new(blocks.iter().map(block).collect())
}

/// The memory that a source offers.
pub fn offered(offer: &Offer) -> Result<MappedMemory, VmError> {
    let blocks = offer.blocks.iter().map(|block| {
        let mapping = Mapping::memfd("destination", block.len_bytes as usize)?;
        Ok((block.name.clone(), mapping))
    });
    Ok(MappedMemory::new(blocks.collect::<Result<_, VmError>>()?))
}

/// Somewhere to listen, and what has to be kept for it.
#[derive(Debug)]
pub struct Place {
    /// Where to listen.
    pub address: Address,
    _folder: Option<tempfile::TempDir>,
}

impl Place {
    /// A unix socket in a folder of its own.
    pub fn unix() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            address: Address::Unix(PathBuf::from(folder.path()).join("s")),
            _folder: Some(folder),
        }
    }

    /// A port of this host.
    pub fn tcp() -> Self {
        Self {
            address: "tcp:127.0.0.1:0".parse().unwrap(),
            _folder: None,
        }
    }
}

/// Both ends of a migration that has ended.
#[derive(Debug)]
pub struct Outcome {
    /// What the source says.
    pub source: Result<Statistics, SourceFailure>,
    /// What the destination says.
    pub destination: Result<Received<MappedMemory>, Failure>,
    /// The VM at the destination.
    pub vm: TestVm,
}

/// Sends `guest` to a destination in another thread, tracked by the kernel.
pub fn migrate(guest: &TestGuest, place: &Place, parameters: &Parameters) -> Outcome {
    let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    migrate_with(
        guest,
        &mut acceptor,
        parameters,
        &mut log,
        &Cancel::new(),
        &mut |_| {},
    )
}

/// As [`migrate`], with a dirty log of one's own, in sight, and until it is cancelled.
pub fn migrate_with(
    guest: &TestGuest,
    acceptor: &mut Acceptor,
    parameters: &Parameters,
    log: &mut dyn DirtyLog,
    cancel: &Cancel,
    observe: &mut dyn FnMut(&Progress),
) -> Outcome {
    let address = acceptor.address().clone();
    let over = Cancel::new();
    thread::scope(|scope| {
        let over = &over;
        let destination = scope.spawn(move || {
            let mut vm = TestVm::empty();
            let settings = DestinationSettings::default();
            let received =
                destination::receive(acceptor, offered, &mut vm, &settings, over, &mut |_| {});
            (received, vm)
        });
        let mut vm = guest.vm();
        let guest = Guest {
            uuid: [7; 16],
            memory: &guest.memory,
            dirty: log,
            vm: &mut vm,
        };
        let source = source::send(&address, guest, parameters, cancel, observe);
        // A source that failed before it dialled has told nobody.
        let patience = Instant::now() + Duration::from_millis(500);
        while source.is_err() && !destination.is_finished() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        if source.is_err() {
            over.cancel();
        }
        let (destination, vm) = destination.join().unwrap();
        Outcome {
            source,
            destination,
            vm,
        }
    })
}

/// Migrates a guest that writes as fast as it can, and compares both ends.
pub fn migrates_whole(place: &Place, len_bytes: usize, parameters: &Parameters) {
    let mut guest = TestGuest::new(len_bytes);
    // As fast as it can, over as much as can be sent while it stands still.
    guest.write_everywhere(1, (64.0 * MIB as f64 / len_bytes as f64).min(0.25));
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

/// Says which page differs, if one does.
pub fn assert_equal(source: &MappedMemory, destination: &MappedMemory) {
    for (name, ours) in source.mappings() {
        let theirs = destination.mappings();
        let (_, theirs) = theirs.iter().find(|(other, _)| other == name).unwrap();
        let len = ours.range().len_bytes();
        let (mut a, mut b) = (vec![0; MIB.min(len)], vec![0; MIB.min(len)]);
        for start in (0..len).step_by(MIB) {
            use std::os::unix::fs::FileExt;
            let piece = MIB.min(len - start);
            ours.file()
                .read_exact_at(&mut a[..piece], start as u64)
                .unwrap();
            theirs
                .file()
                .read_exact_at(&mut b[..piece], start as u64)
                .unwrap();
            if a[..piece] != b[..piece] {
                let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap();
                panic!("block {name} differs at {:#x}", start + at);
            }
        }
    }
}
