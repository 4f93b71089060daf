//! A channel that sends the pages that changed between images of a guest's memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use multifd_benches::PAGE_SIZE;
use multifd_codec::delta::memory::{Share, set_limit};
use multifd_codec::delta::{Counts, Decoder, Encoder, Kept, Sent};
use multifd_codec::{PageBuffer, Settings, decoder, is_zero};
use multifd_wire::{BlockName, Method, RamPacket};

/// All memory of a guest.
pub type Image = Vec<u8>;

/// What the rounds after the first one took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    pub pages: u64,
    pub bytes: u64,
    pub time: Duration,
    pub reading: Duration,
}

/// Both ends of a channel.
pub struct Sender {
    encoder: Encoder,
    decoder: Decoder,
    sent: Option<Arc<Sent>>,
    pages: PageBuffer,
    arrived: PageBuffer,
    payload: Vec<u8>,
    epoch: u64,
}

impl Sender {
    pub fn new(method: Method, settings: &Settings, budget: Option<u64>) -> Self {
        set_limit(16 << 30);
        let inner = multifd_codec::Encoder::new(method, settings).expect("a method");
        let sent = budget.map(|budget| Arc::new(Sent::new(Share::take(budget))));
        let kept = budget.map(|budget| Arc::new(Kept::new(Share::take(budget))));
        let read = decoder(method, settings).expect("a method");
        Self {
            encoder: Encoder::new(inner, sent.clone()),
            decoder: Decoder::new(read, kept),
            sent,
            pages: PageBuffer::default(),
            arrived: PageBuffer::default(),
            payload: Vec::new(),
            epoch: 0,
        }
    }

    pub fn counts(&self) -> Counts {
        self.sent
            .as_ref()
            .map(|sent| sent.counts())
            .unwrap_or_default()
    }

    /// Sends a packet, checks what arrives, and adds what it took.
    pub fn send(&mut self, packet: RamPacket, pages: &[u8], total: &mut Total) {
        let mut buffer = std::mem::take(&mut self.pages);
        buffer.space(pages.len()).copy_from_slice(pages);
        let begin = Instant::now();
        self.encoder.push(buffer, self.epoch, packet);
        let popped = self.encoder.pop(&mut self.payload);
        total.time += begin.elapsed();
        let (buffer, packet) = popped.expect("encoded").expect("a packet");
        self.pages = buffer;
        total.pages += packet.normal().len() as u64;
        total.bytes += self.payload.len() as u64;
        self.arrived.space(pages.len());
        let begin = Instant::now();
        self.decoder
            .decode(&mut self.payload, &packet, &mut self.arrived, &|| false)
            .expect("decoded");
        total.reading += begin.elapsed();
        assert!(self.arrived.as_ref() == pages, "a page arrived wrong");
    }
}

/// Sends the first image, and then the changes up to each further one. All senders take turns.
pub fn measure<const SENDERS: usize>(
    images: &[Image],
    senders: &mut [Sender; SENDERS],
) -> [Total; SENDERS] {
    let mut totals = [Total::default(); SENDERS];
    let size = PAGE_SIZE.bytes();
    let mut before: &[u8] = &[];
    for (number, image) in images.iter().enumerate() {
        let is_changed = |page: &usize| {
            let place = page * size..(page + 1) * size;
            before.get(place.clone()) != image.get(place)
        };
        let changed: Vec<usize> = (0..image.len() / size).filter(is_changed).collect();
        let more = send(image, &changed, senders, number as u64);
        if number > 0 {
            for (total, more) in totals.iter_mut().zip(more) {
                total.pages += more.pages;
                total.bytes += more.bytes;
                total.time += more.time;
                total.reading += more.reading;
            }
        }
        before = image;
    }
    totals
}

/// Sends all pages.
pub fn round<const SENDERS: usize>(
    image: &Image,
    senders: &mut [Sender; SENDERS],
    epoch: u64,
) -> [Total; SENDERS] {
    let all: Vec<usize> = (0..image.len() / PAGE_SIZE.bytes()).collect();
    send(image, &all, senders, epoch)
}

fn send<const SENDERS: usize>(
    image: &Image,
    numbers: &[usize],
    senders: &mut [Sender; SENDERS],
    epoch: u64,
) -> [Total; SENDERS] {
    let mut totals = [Total::default(); SENDERS];
    let size = PAGE_SIZE.bytes();
    for numbers in numbers.chunks(PAGE_SIZE.pages_per_packet()) {
        let (mut normal, mut zero, mut pages) = (vec![], vec![], vec![]);
        for number in numbers {
            let page = &image[number * size..(number + 1) * size];
            let offset = (number * size) as u64;
            if is_zero(page) {
                zero.push(offset);
            } else {
                normal.push(offset);
                pages.extend_from_slice(page);
            }
        }
        let block = BlockName::new(b"pc.ram").expect("a name");
        let packet = RamPacket::new(PAGE_SIZE, block, &normal, &zero, 0).expect("a packet");
        for (sender, total) in senders.iter_mut().zip(&mut totals) {
            sender.epoch = epoch;
            sender.send(packet.clone(), &pages, total);
        }
    }
    totals
}
