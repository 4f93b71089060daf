//! Memory that changes in other ways than by a running guest's writes.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use multifd_engine::destination::{self, DestinationSettings};
use multifd_engine::dirty::{
    AtomicBitmapLog, DirtyBitmap, DirtyLog, DirtyLogError, MarkedLog, Marks, PagemapLog,
};
use multifd_engine::memory::{GuestMemory, HostRange, MappedMemory, Mapping, VmMemory};
use multifd_engine::source::{self, Guest};
use multifd_engine::{Parameters, Statistics, VmError, VmHandle, ZeroPageDetection};
use multifd_transport::Cancel;
use multifd_transport::incoming::Acceptor;
use multifd_wire::PageSize;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{Advice, madvise};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use testkit::engine::{MIB, Place, TestVm, assert_equal, memory, offered};

const PAGE: u64 = 4096;

/// A VM whose memory changes when it is stopped, and when its state is saved.
struct Changing<P, S> {
    on_pause: P,
    on_save: S,
}

impl<P: FnMut() + Send, S: FnMut() + Send> VmHandle for Changing<P, S> {
    fn pause(&mut self) -> Result<(), VmError> {
        (self.on_pause)();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmError> {
        Ok(())
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        (self.on_save)();
        Ok(b"state".to_vec())
    }

    fn load_device_state(&mut self, _: &[u8]) -> Result<(), VmError> {
        Ok(())
    }
}

/// Moves a guest and returns its memory at the destination.
fn moved(
    memory: &dyn GuestMemory,
    dirty: &mut dyn DirtyLog,
    vm: &mut dyn VmHandle,
    parameters: &Parameters,
) -> (MappedMemory, Statistics) {
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    std::thread::scope(|scope| {
        let destination = scope.spawn(|| {
            destination::receive(
                &mut acceptor,
                offered,
                &mut TestVm::empty(),
                &DestinationSettings::default(),
                &Cancel::new(),
                &mut |_| {},
            )
        });
        let guest = Guest {
            uuid: [7; 16],
            memory,
            dirty,
            vm,
        };
        let none = &mut |_: &_| {};
        let sent = source::send(&place.address, guest, parameters, &Cancel::new(), none);
        let received = destination.join().unwrap();
        let explained = |failure: source::SourceFailure| failure.failure.explain();
        let statistics = sent.map_err(explained).unwrap();
        (received.unwrap().memory, statistics)
    })
}

/// With a digest, without one, and where zero pages are sent as they are.
fn all_ways() -> [Parameters; 3] {
    let plain = Parameters::default();
    let (mut digest, mut no_detection) = (plain.clone(), plain.clone());
    digest.digest = true;
    no_detection.zero_page_detection = ZeroPageDetection::None;
    [plain, digest, no_detection]
}

/// A megabyte without a zero page.
fn full() -> MappedMemory {
    let memory = memory(&[("ram", MIB)]);
    memory.mappings()[0].1.range().write(0, &[7; MIB]).unwrap();
    memory
}

fn page(memory: &MappedMemory, page: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0xee; PAGE as usize];
    let file = memory.mappings()[0].1.file();
    file.read_exact_at(&mut bytes, page * PAGE).unwrap();
    bytes
}

fn punch(memory: &MappedMemory, page: u64, pages: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let file = memory.mappings()[0].1.file();
    fallocate(file, flags, page * PAGE, pages * PAGE).unwrap();
}

#[expect(unsafe_code, reason = "advice that takes memory away")]
fn advise(range: HostRange<'_>, page: u64, pages: u64, advice: Advice) {
    let start = (range.addresses().start + page * PAGE) as usize;
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the pages are the test's own and stay mapped; whoever reads them knows that they may
    // turn to zero.
    unsafe { madvise(start, (pages * PAGE) as usize, advice) }.unwrap();
}

#[test]
fn what_saving_the_state_writes_is_moved() {
    for parameters in all_ways() {
        let memory = full();
        let range = memory.mappings()[0].1.range();
        let mut log = PagemapLog::of_memory(&memory).unwrap();
        let mut vm = Changing {
            on_pause: || range.write(3 * PAGE, &[1; PAGE as usize]).unwrap(),
            on_save: || range.write(5 * PAGE, &[2; PAGE as usize]).unwrap(),
        };
        let (there, _) = moved(&memory, &mut log, &mut vm, &parameters);
        assert_eq!((page(&there, 3)[0], page(&there, 5)[0]), (1, 2));
        assert_equal(&memory, &there);
    }
}

/// A balloon, virtio-mem and free page reporting give memory back like this.
#[test]
fn pages_that_are_discarded_are_zero_there_too() {
    for parameters in all_ways() {
        let memory = full();
        let range = memory.mappings()[0].1.range();
        let mut log = PagemapLog::of_memory(&memory).unwrap();
        let mut vm = Changing {
            on_pause: || punch(&memory, 4, 1),
            on_save: || advise(range, 100, 50, Advice::LinuxRemove),
        };
        let (there, statistics) = moved(&memory, &mut log, &mut vm, &parameters);
        for discarded in [4, 100, 149] {
            assert_eq!(page(&there, discarded), [0; PAGE as usize], "{discarded}");
        }
        assert_equal(&memory, &there);
        // None but those was sent again.
        assert_eq!(statistics.normal + statistics.duplicate, 256 + 51);
    }
}

/// The engine finds what the log does not: this one sees nothing.
struct Blind;

impl DirtyLog for Blind {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn fetch(&mut self, _: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn stop(&mut self) {}
}

#[test]
fn discarded_pages_are_found_beside_any_log_and_in_pages_of_any_size() {
    for page_bytes in [1 << 10, 4 << 10, 64 << 10] {
        let memory = full();
        let mut parameters = Parameters::default();
        parameters.page_size = PageSize::new(page_bytes).unwrap();
        let mut vm = Changing {
            on_pause: || punch(&memory, 17, 1),
            on_save: || {},
        };
        let (there, statistics) = moved(&memory, &mut Blind, &mut vm, &parameters);
        assert_equal(&memory, &there);
        let again = u64::from(4096_u32.div_ceil(page_bytes));
        let pages = MIB as u64 / u64::from(page_bytes);
        assert_eq!(statistics.normal + statistics.duplicate, pages + again);
    }
}

#[test]
fn private_memory_that_is_discarded_is_zero_there_too() {
    type Memory = GuestMemoryMmap<AtomicBitmap>;
    for reads_again in [false, true] {
        let ours = Memory::from_ranges(&[(GuestAddress(0), 4 * MIB)]).unwrap();
        ours.write_slice(&vec![7; 4 * MIB], GuestAddress(0))
            .unwrap();
        let memory = VmMemory::new(&ours).unwrap();
        let range = memory.blocks()[0].range;
        let mut vm = Changing {
            on_pause: || {
                advise(range, 4, 1, Advice::LinuxDontNeed);
                advise(range, 100, 600, Advice::LinuxDontNeed);
                if reads_again {
                    let read: u8 = ours.read_obj(GuestAddress(4 * PAGE)).unwrap();
                    assert_eq!(read, 0);
                }
            },
            on_save: || {},
        };
        let mut log = AtomicBitmapLog::new(&ours);
        let (there, _) = moved(&memory, &mut log, &mut vm, &Parameters::default());
        for (at, wanted) in [(3, 7), (4, 0), (5, 7), (100, 0), (699, 0), (700, 7)] {
            assert_eq!(page(&there, at), [wanted; PAGE as usize], "{at}");
        }
    }
}

/// A page that was given back, and that the guest's process reads before the log is fetched: the
/// engine has a mapping of its own, as an offload daemon has.
#[test]
fn a_discarded_page_that_another_process_reads_again_is_zero_there_too() {
    let guests = full();
    let file = guests.mappings()[0].1.file().try_clone().unwrap();
    let name = guests.mappings()[0].0.clone();
    let ours = MappedMemory::new(vec![(name, Mapping::shared(file.into()).unwrap())]);
    let addresses = guests.mappings()[0].1.range().addresses();
    let tracking =
        multifd_engine::dirty::WriteTracking::register(&[guests.mappings()[0].1.range()]);
    let _tracking = tracking.unwrap();
    let mut log = PagemapLog::of_process(std::process::id(), vec![addresses]).unwrap();
    let mut vm = Changing {
        on_pause: || {
            punch(&guests, 9, 1);
            let range = guests.mappings()[0].1.range();
            let handle = [range.page(9 * PAGE, PageSize::K4).unwrap()];
            let mut copy = Vec::new();
            multifd_codec::Pages::guest(&handle, PageSize::K4)
                .unwrap()
                .append_to(&mut copy);
            assert!(multifd_codec::is_zero(&copy));
        },
        on_save: || {},
    };
    let (there, _) = moved(&ours, &mut log, &mut vm, &Parameters::default());
    assert_equal(&guests, &there);
}

#[test]
fn what_a_vmm_writes_past_the_mapping_and_marks_is_moved() {
    for parameters in all_ways() {
        let memory = full();
        let marks = Marks::of_memory(&memory);
        let log = PagemapLog::of_memory(&memory).unwrap();
        let mut log = MarkedLog::new(log, marks.clone());
        let write = |page: u64, byte: u8| {
            let file = memory.mappings()[0].1.file();
            file.write_all_at(&[byte; PAGE as usize], page * PAGE)
                .unwrap();
            marks.mark(0, page * PAGE..(page + 1) * PAGE).unwrap();
        };
        let mut vm = Changing {
            on_pause: || write(3, 1),
            on_save: || write(5, 2),
        };
        let (there, _) = moved(&memory, &mut log, &mut vm, &parameters);
        assert_eq!((page(&there, 3)[0], page(&there, 5)[0]), (1, 2));
        assert_equal(&memory, &there);
    }
}

/// A log in front of whose first fetch the guest writes much, after the round of all pages.
struct WritesOnce<'a> {
    log: PagemapLog,
    memory: &'a MappedMemory,
    pages: u64,
    done: bool,
}

impl DirtyLog for WritesOnce<'_> {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.log.start()
    }

    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        if !std::mem::replace(&mut self.done, true) {
            let range = self.memory.mappings()[0].1.range();
            for page in 0..self.pages {
                range.write(page * PAGE, &[7; PAGE as usize]).unwrap();
            }
        }
        self.log.fetch(dirty)
    }

    fn stop(&mut self) {
        self.log.stop();
    }
}

/// Zero pages say nothing about how long others take.
#[test]
fn a_guest_that_was_all_zero_is_not_stopped_with_much_to_send() {
    use multifd_engine::Phase;
    let memory = Arc::new(memory(&[("ram", 16 * MIB)]));
    let pages = 1000;
    let mut log = WritesOnce {
        log: PagemapLog::of_memory(&memory).unwrap(),
        memory: &memory,
        pages,
        done: false,
    };
    let mut parameters = Parameters::default();
    // So that the pages take 0.4 s.
    parameters.max_bandwidth = std::num::NonZeroU64::new(10_000_000);
    parameters.downtime_limit = std::time::Duration::from_millis(50);
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let mut left = None;
    std::thread::scope(|scope| {
        let destination = scope.spawn(|| {
            destination::receive(
                &mut acceptor,
                offered,
                &mut TestVm::empty(),
                &DestinationSettings::default(),
                &Cancel::new(),
                &mut |_| {},
            )
        });
        let guest = Guest {
            uuid: [7; 16],
            memory: &memory,
            dirty: &mut log,
            vm: &mut TestVm::empty(),
        };
        let sent = source::send(
            &place.address,
            guest,
            &parameters,
            &Cancel::new(),
            &mut |progress| {
                if progress.phase == Phase::SwitchOver {
                    left.get_or_insert(progress.remaining_pages);
                }
            },
        );
        assert_eq!(sent.unwrap().rounds, 3, "all, what was written, the last");
        destination.join().unwrap().unwrap();
    });
    assert_eq!(left, Some(0), "{pages} pages were sent while the guest ran");
}
