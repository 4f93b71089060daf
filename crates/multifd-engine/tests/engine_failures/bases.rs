//! Differences whose base is wrong or missing, and peers that know none.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::delta::memory::Share;
use multifd_codec::delta::{Encoder, Sent};
use multifd_codec::{PageBuffer, Settings};
use multifd_engine::Parameters;
use multifd_engine::control::{
    Accepted, Acked, Block, Capabilities, ControlReceiver, Event, Hello, Message, Preamble,
};
use multifd_engine::destination::{self, DestinationSettings};
use multifd_engine::dirty::{DirtyBitmap, DirtyLog, DirtyLogError, PagemapLog};
use multifd_engine::memory::MappedMemory;
use multifd_engine::source::{self, Guest, GuestState};
use multifd_transport::incoming::Acceptor;
use multifd_transport::{Cancel, Inlet, Item, Listener, Stream};
use multifd_wire::{Limits, Method, Packet, PageSize, RamPacket};
use testkit::engine::{MIB, Place, TestGuest, TestVm, memory, name, offered};

const PAGE: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(20);

fn parameters() -> Parameters {
    let mut parameters = Parameters::default();
    parameters.delta_memory = 16 << 20;
    parameters
}

/// Between the first round and the second one, the guest writes a word in each of its pages, and
/// one bit changes at the destination.
struct Meddling<'a> {
    log: PagemapLog,
    here: &'a MappedMemory,
    there: &'a MappedMemory,
    is_done: bool,
}

impl DirtyLog for Meddling<'_> {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.log.start()
    }

    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        if !std::mem::replace(&mut self.is_done, true) {
            let range = self.here.mappings()[0].1.range();
            for page in 0..range.len_bytes() as u64 / PAGE {
                range.write(page * PAGE + 64, &page.to_ne_bytes()).unwrap();
            }
            let range = self.there.mappings()[0].1.range();
            let mut word = [0; 8];
            range.read(77 * PAGE + 800, &mut word).unwrap();
            word[3] ^= 0x10;
            range.write(77 * PAGE + 800, &word).unwrap();
        }
        self.log.fetch(dirty)
    }

    fn stop(&mut self) {
        self.log.stop();
    }
}

/// The source has the guest afterwards, and it runs.
pub fn that_somebody_changed() {
    let guest = TestGuest::of(memory(&[("ram", 4 * MIB)]));
    let there = Arc::new(memory(&[("ram", 4 * MIB)]));
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let mut vm = TestVm::empty();
            let (settings, none) = (DestinationSettings::default(), &mut |_| {});
            let (cancel, memory) = (Cancel::new(), |_: &_| Ok(Arc::clone(&there)));
            let outcome =
                destination::receive(&mut acceptor, memory, &mut vm, &settings, &cancel, none);
            (outcome, vm)
        });
        let mut log = Meddling {
            log: PagemapLog::of_memory(&guest.memory).unwrap(),
            here: &guest.memory,
            there: &there,
            is_done: false,
        };
        let moved = Guest {
            uuid: [7; 16],
            memory: &guest.memory,
            dirty: &mut log,
            vm: &mut guest.vm(),
        };
        let (cancel, none) = (Cancel::new(), &mut |_: &_| {});
        let sent = source::send(&place.address, moved, &parameters(), &cancel, none);
        let failure = sent.unwrap_err();
        assert!(matches!(failure.guest, GuestState::Runs), "{failure:?}");
        let said = failure.failure.explain();
        assert!(said.contains("have digest"), "{said}");
        let (outcome, vm) = destination.join().unwrap();
        let failure = outcome.unwrap_err();
        let said = failure.explain();
        assert!(said.contains("have digest"), "{said}");
        assert!(!vm.runs.load(Ordering::SeqCst));
    });
    assert!(guest.gate.is_open());
}

/// A source makes a difference to a page that it has not sent: the destination does not tell it
/// what its memory held before.
pub fn that_never_came() {
    let block = name("ram");
    let offsets = [2 * PAGE];
    let packet = || RamPacket::new(PageSize::K4, block.clone(), &offsets, &[], 0).unwrap();
    let inner = multifd_codec::Encoder::new(Method::None, &Settings::default()).unwrap();
    let sent = Sent::in_place(Share::take(1 << 20));
    let mut encoder = Encoder::new(inner, Some(Arc::new(sent)));
    let mut payload = Vec::new();
    let mut second = packet();
    for _ in 0..2 {
        let mut pages = PageBuffer::default();
        pages.space(PAGE as usize).fill(7);
        encoder.push(pages, 0, packet());
        (_, second) = encoder.pop(&mut payload).unwrap().unwrap();
    }
    let method = encoder.packet_method();
    second.set_payload(method, payload.len() as u32).unwrap();
    let mut packet = Vec::new();
    Packet::Ram(second).encode(&mut packet);
    packet.extend(payload);

    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let (vm, settings) = (&mut TestVm::empty(), DestinationSettings::default());
            let none = &mut |_| {};
            destination::receive(&mut acceptor, offered, vm, &settings, &Cancel::new(), none)
        });
        let main = Stream::connect(&place.address).unwrap();
        let mut bytes = Preamble::OURS.to_bytes().to_vec();
        let hello = Hello {
            capabilities: Capabilities::DELTA,
            vm: [0; 16],
            session: [1; 16],
            page_size: PageSize::K4,
            channels: 1,
            method_bits: Method::None.bits(),
        };
        Message::Hello(hello).encode(&mut bytes).unwrap();
        let blocks = vec![Block {
            name: block.clone(),
            len_bytes: 4 * PAGE,
        }];
        Message::Blocks(blocks).encode(&mut bytes).unwrap();
        (&main).write_all(&bytes).unwrap();
        let channel = Stream::connect(&place.address).unwrap();
        let hello = multifd_wire::Hello::new([1; 16], 0);
        (&channel).write_all(&hello.to_bytes()).unwrap();
        (&channel).write_all(&packet).unwrap();
        main.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut said = Vec::new();
        let _ = (&main).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("has not come before"), "{said}");
        let failure = destination.join().unwrap().unwrap_err();
        let said = failure.explain();
        assert!(
            said.contains("page 0 of the packet is a difference, but"),
            "{said}"
        );
    });
}

/// It accepts no capability. The source asks for differences, and sends none.
pub fn old_destination() {
    let place = Place::unix();
    let listener = Listener::bind(&place.address).unwrap();
    let guest = TestGuest::new(MIB);
    let accept = || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(stream) = listener.try_accept().unwrap() {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return stream;
            }
            assert!(Instant::now() < deadline, "no connection");
            thread::sleep(Duration::from_millis(1));
        }
    };
    thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let main = accept();
            let (mut receiver, mut buffer) = (ControlReceiver::new(Limits::default()), [0; 512]);
            let hello = loop {
                let count = main.read_some(&mut buffer).unwrap();
                assert!(count > 0, "the source has gone");
                let mut bytes = &buffer[..count];
                let mut event = receiver.push(&mut bytes).unwrap();
                if matches!(event, Some(Event::Preamble(_))) {
                    event = receiver.push(&mut bytes).unwrap();
                }
                if let Some(Event::Message(Message::Hello(hello))) = event {
                    break hello;
                }
            };
            assert!(hello.capabilities.contains(Capabilities::DELTA));
            let mut answer = Preamble::OURS.to_bytes().to_vec();
            let accepted = Accepted {
                capabilities: Capabilities::default(),
                channels: 1,
            };
            Message::Accepted(accepted).encode(&mut answer).unwrap();
            Message::Ack(Acked::Blocks).encode(&mut answer).unwrap();
            (&main).write_all(&answer).unwrap();
            let channel = accept();
            let mut hello = [0; multifd_wire::Hello::LEN];
            (&channel).read_exact(&mut hello).unwrap();
            let hello = multifd_wire::Hello::new([1; 16], 0);
            let settings = Settings::default();
            let mut inlet = Inlet::new(&channel, &hello, Limits::default(), settings).unwrap();
            let mut pages = 0;
            loop {
                match inlet.next_item().unwrap() {
                    Item::Packet(Packet::Ram(packet)) if packet.is_sync() => break,
                    Item::Packet(Packet::Ram(packet)) => {
                        pages += inlet.read_pages(&packet).unwrap().len() as u64 / PAGE;
                    }
                    other => panic!("{other:?}"),
                }
            }
            pages
        });
        let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
        let moved = Guest {
            uuid: [7; 16],
            memory: &guest.memory,
            dirty: &mut log,
            vm: &mut guest.vm(),
        };
        let (cancel, none) = (Cancel::new(), &mut |_: &_| {});
        let sent = source::send(&place.address, moved, &parameters(), &cancel, none);
        let failure = sent.unwrap_err();
        assert!(matches!(failure.guest, GuestState::Runs), "{failure:?}");
        assert_eq!(failure.statistics.differences, None);
        // A third of the guest is zero.
        assert_eq!(destination.join().unwrap(), 256 - 86);
    });
    assert!(guest.gate.is_open());
}
