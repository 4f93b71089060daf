//! Pages whose bases the receiver has in place.

use std::cell::RefCell;

use super::*;

/// A guest's memory, and the channels to a receiver of it.
struct Migration {
    page_size: PageSize,
    sent: Arc<Sent>,
    encoders: Vec<Encoder>,
    decoders: Vec<Decoder>,
    guest: Vec<u8>,
    there: RefCell<Vec<u8>>,
    came: RefCell<Vec<bool>>,
    epoch: u64,
}

impl Migration {
    fn new(method: Method, page_size: PageSize, pages: usize, bytes: u64, channels: usize) -> Self {
        let sent = Arc::new(Sent::in_place(Share::take(bytes)));
        let make = |_| Decoder::in_place(decoder(method, &Settings::default()).unwrap());
        Self {
            page_size,
            encoders: (0..channels).map(|_| writer(method, &sent)).collect(),
            decoders: (0..channels).map(make).collect(),
            sent,
            guest: vec![0; pages * page_size.bytes()],
            // Memory that held something else before.
            there: RefCell::new(vec![0x5a; pages * page_size.bytes()]),
            came: RefCell::new(vec![false; pages]),
            epoch: 0,
        }
    }

    fn page(&mut self, number: u64) -> &mut [u8] {
        let size = self.page_size.bytes();
        &mut self.guest[number as usize * size..][..size]
    }

    /// Sends these pages, the ones that are zero as such, over the channels in turn. All packets
    /// are made before one of them is read, and channels are read in another order.
    fn round(&mut self, pages: &[u64], each: usize) -> Result<(), DeltaError> {
        let channels = self.encoders.len();
        let mut on_their_way: Vec<Vec<_>> = vec![Vec::new(); channels];
        for (index, pages) in pages.chunks(each).enumerate() {
            let is_zero = |page: &u64| multifd_codec::is_zero(self.content(*page));
            let (zero, normal): (Vec<u64>, Vec<u64>) = pages.iter().partition(|page| is_zero(page));
            let contents: Vec<u8> = normal
                .iter()
                .flat_map(|page| self.content(*page).to_vec())
                .collect();
            let packet = packet("ram", self.page_size, &normal, &zero);
            let encoder = &mut self.encoders[index % channels];
            let sent = match normal.is_empty() {
                true => {
                    encoder.forget_zero_pages(&packet);
                    (packet, Vec::new())
                }
                false => encode(encoder, packet, &contents, self.epoch),
            };
            on_their_way[index % channels].push(sent);
        }
        self.epoch += 1;
        for (channel, packets) in on_their_way.iter().enumerate().rev() {
            for (packet, payload) in packets {
                self.receive(channel, packet, payload)?;
            }
        }
        Ok(())
    }

    fn content(&self, number: u64) -> &[u8] {
        let size = self.page_size.bytes();
        &self.guest[number as usize * size..][..size]
    }

    fn receive(
        &mut self,
        channel: usize,
        packet: &RamPacket,
        payload: &[u8],
    ) -> Result<(), DeltaError> {
        let size = self.page_size.bytes();
        let mut pages = PageBuffer::default();
        pages.space(packet.normal().len() * size).fill(0xa5);
        let base = |offset: u64, page: &mut [u8]| {
            page.copy_from_slice(&self.there.borrow()[offset as usize..][..size]);
            self.came.borrow()[offset as usize / size]
        };
        let decoder = &mut self.decoders[channel];
        if !packet.normal().is_empty() {
            decoder.decode_in_place(&mut payload.to_vec(), packet, &mut pages, &base)?;
        }
        let mut there = self.there.borrow_mut();
        let came = packet.normal().iter().chain(packet.zero());
        came.for_each(|offset| self.came.borrow_mut()[*offset as usize / size] = true);
        for (offset, page) in packet.normal().iter().zip(pages.as_ref().chunks(size)) {
            there[*offset as usize..][..size].copy_from_slice(page);
        }
        for offset in packet.zero() {
            there[*offset as usize..][..size].fill(0);
        }
        Ok(())
    }

    fn assert_arrived(&self) {
        let (guest, there) = (self.guest.as_slice(), self.there.borrow());
        let differs = guest.iter().zip(there.iter()).position(|(a, b)| a != b);
        assert_eq!(differs, None, "round {}", self.epoch);
    }
}

/// What a guest may do with a page between two rounds.
fn write(random: &mut Random, page: &mut [u8]) {
    match random.below(8) {
        0 => page.fill(0),
        1 => page.copy_from_slice(&super::page(random.next() % 1000, page.len())),
        2 => {}
        3 => page.iter_mut().for_each(|byte| *byte = random.byte()),
        _ => touch(random, page),
    }
}

#[test]
fn whatever_a_guest_writes_arrives() {
    const PAGES: usize = 96;
    for (index, method) in METHODS.into_iter().cycle().take(30).enumerate() {
        let page_size = [PageSize::K4, PageSize::MIN, PageSize::MAX][index % 3];
        // No slot, a few, half of the pages, all of them.
        let slots = [0, 3, 48, 96][index % 4];
        let bytes = budget(slots, page_size);
        let mut random = Random::new(index as u64 + 7);
        let channels = 1 + random.below(3);
        let mut migration = Migration::new(method, page_size, PAGES, bytes, channels);
        let all: Vec<u64> = (0..PAGES as u64).collect();
        for round in 0..8 {
            let pages: Vec<u64> = match round {
                0 => all.clone(),
                _ => (all.iter().copied().filter(|_| random.below(3) > 0)).collect(),
            };
            for page in &pages {
                write(&mut random, migration.page(*page));
            }
            let each = 1 + random.below(page_size.pages_per_packet().min(PAGES));
            migration.round(&pages, each).unwrap();
            migration.assert_arrived();
        }
        let counts = migration.sent.counts();
        assert_eq!(counts.slots, u64::from(slots));
        assert_eq!(counts.differences > 0, slots > 0, "{method}: {counts:?}");
    }
}

/// A channel whose pages differ much compares few of them. What it sends without a look at its
/// copies is the base of the next round.
#[test]
fn pages_that_pass_their_slot_leave_it() {
    const PAGES: u64 = 512;
    let bytes = budget(PAGES as u32, PageSize::K4);
    let mut migration = Migration::new(Method::None, PageSize::K4, PAGES as usize, bytes, 1);
    let all: Vec<u64> = (0..PAGES).collect();
    let mut random = Random::new(3);
    let mut former = Vec::new();
    for round in 0..3 {
        if round == 2 {
            // Most pages become again what the first round had, but for a few bytes. The channel
            // compares one page in 32, and then the ones after it.
            let later = std::mem::replace(&mut migration.guest, former.clone());
            for page in (0..PAGES).step_by(32) {
                let at = page as usize * 4096;
                let content = &later[at..at + 4096];
                migration.page(page).copy_from_slice(content);
            }
            (0..PAGES).for_each(|page| touch(&mut random, migration.page(page)));
        } else {
            (migration.guest.iter_mut()).for_each(|byte| *byte = random.byte());
        }
        if round == 0 {
            former = migration.guest.clone();
        }
        migration.round(&all, 128).unwrap();
        migration.assert_arrived();
    }
    let counts = migration.sent.counts();
    assert!(counts.misses.skipped > 0, "{counts:?}");
    assert!(counts.differences > 0, "{counts:?}");
}

/// One page was sent, and a packet with its difference is on its way.
fn on_its_way() -> (Migration, RamPacket, Vec<u8>) {
    let mut migration = Migration::new(Method::None, PageSize::K4, 4, 1 << 20, 1);
    for number in 0..4 {
        let content = page(number, 4096);
        migration.page(number).copy_from_slice(&content);
    }
    migration.round(&[0, 1, 2], 4).unwrap();
    for number in 0..3 {
        migration.page(number)[9] ^= 1;
    }
    let packet = packet("ram", PageSize::K4, &[0, 1, 2], &[]);
    let contents = migration.guest[..3 * 4096].to_vec();
    let (packet, payload) = encode(&mut migration.encoders[0], packet, &contents, 1);
    assert_eq!(migration.sent.counts().differences, 3);
    assert!(payload.len() < 64, "{} bytes", payload.len());
    (migration, packet, payload)
}

#[test]
fn a_wrong_or_missing_base_is_refused() {
    let (mut migration, packet, payload) = on_its_way();
    migration.there.borrow_mut()[4096 + 77] ^= 4;
    let error = migration.receive(0, &packet, &payload).unwrap_err();
    assert!(is_wrong_digest(&error), "{error}");
    migration.there.borrow_mut()[4096 + 77] ^= 4;
    let error = migration.receive(0, &packet, &payload).unwrap_err();
    assert_eq!(error.to_string(), POISONED);

    let (mut migration, packet, payload) = on_its_way();
    migration.came.borrow_mut()[1] = false;
    let error = migration.receive(0, &packet, &payload).unwrap_err();
    let no_base = |page| {
        format!("page {page} of the packet is a difference, but the page has not come before")
    };
    assert_eq!(error.to_string(), no_base(1));

    // Without a base of the caller's none has come.
    let (mut migration, packet, payload) = on_its_way();
    let error = decode(&mut migration.decoders[0], &packet, &payload).unwrap_err();
    assert_eq!(error.to_string(), no_base(0));
}

#[test]
fn a_wrong_bit_never_makes_a_wrong_page() {
    let mut refused = 0;
    let len = on_its_way().2.len();
    for bit in 0..8 * len {
        let (mut migration, packet, mut payload) = on_its_way();
        payload[bit / 8] ^= 1 << (bit % 8);
        match migration.receive(0, &packet, &payload) {
            Ok(()) => assert!(migration.there.borrow()[..3 * 4096] == migration.guest[..3 * 4096]),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 7 * len, "{refused} of {} bits", 8 * len);
}

#[test]
fn slots_and_pages_in_place_are_told_apart() {
    let (_, packet, payload) = on_its_way();
    let (sent, kept) = ends(1 << 20);
    let error = decode(&mut reader(Method::None, &kept), &packet, &payload).unwrap_err();
    assert_eq!(error.to_string(), "the layout 32 is unknown");
    let contents = vec![7; 3 * 4096];
    let (packet, payload) = encode(&mut writer(Method::None, &sent), packet, &contents, 0);
    let (mut migration, ..) = on_its_way();
    let error = migration.receive(0, &packet, &payload).unwrap_err();
    assert_eq!(error.to_string(), "the layout 16 is unknown");
}
