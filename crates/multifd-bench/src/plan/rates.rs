//! Measures codecs and sockets of this host, in about two seconds.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use multifd_codec::auto::{Auto, Step};
use multifd_codec::delta::memory::{Share, limit, set_limit};
use multifd_codec::delta::{self, Kept, Sent};
use multifd_codec::{Accel, PageBuffer, Pages, Settings, decoder, is_zero};
use multifd_wire::{BlockName, Method, PageSize, RamPacket};

use super::clock::{Times, in_threads};
use super::model::Codec;
use crate::guests::Random;

/// The result of a measurement. Its errors are for people: a method that this host lacks, or a
/// defect.
pub(crate) type Measured<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Nonzero pages that stand for a guest's.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    bytes: Vec<u8>,
    page_size: PageSize,
}

/// The measurements of a step of a method.
#[derive(Clone, Debug)]
pub(crate) struct StepRate {
    /// The step's name.
    pub name: String,
    /// The measurements.
    pub codec: Codec,
}

/// The measurements of a method with differences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Differences {
    /// The first round, which keeps all pages.
    pub first: Codec,
    /// A later round, whose pages were sent before.
    pub later: Codec,
}

/// The costs of a socket of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Socket {
    /// Seconds of the sender for a byte.
    pub sending: f64,
    /// Seconds of the receiver for a byte.
    pub receiving: f64,
}

impl Sample {
    /// The nonzero pages of `bytes`. None if there are none.
    #[must_use]
    pub(crate) fn new(mut bytes: Vec<u8>, page_size: PageSize) -> Option<Self> {
        let mut used = Vec::with_capacity(bytes.len());
        let pages = bytes.chunks_exact(page_size.bytes());
        for page in pages.filter(|page| !is_zero(page)) {
            used.extend_from_slice(page);
        }
        std::mem::swap(&mut bytes, &mut used);
        (!bytes.is_empty()).then_some(Self { bytes, page_size })
    }

    /// The number of pages.
    #[must_use]
    pub(crate) fn pages(&self) -> usize {
        self.bytes.len() / self.page_size.bytes()
    }

    fn packets(&self) -> std::slice::Chunks<'_, u8> {
        let packet = self.page_size.pages_per_packet() * self.page_size.bytes();
        self.bytes.chunks(packet)
    }

    /// All packets, in an order for thread `place` of `places`: threads use different packets at a
    /// time. The order jumps over all the memory, so that the first few packets are typical of all.
    fn packets_from(&self, place: usize, places: usize) -> impl Iterator<Item = &[u8]> {
        let packets: Vec<&[u8]> = self.packets().collect();
        let (count, first) = (packets.len(), packets.len() * place / places.max(1));
        (0..count).filter_map(move |number| {
            let at = (first + number * STRIDE) % count.max(1);
            packets.get(at).copied()
        })
    }
}

/// The settings of a relay for this method on a host without an accelerator.
fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.accel = Accel::Software;
    settings
}

/// Measures a method with fixed settings, in `threads` threads.
///
/// # Errors
///
/// If this build or this machine cannot do the method.
pub(crate) fn fixed(
    method: Method,
    sample: &Sample,
    threads: usize,
    time: Duration,
) -> Measured<Codec> {
    if method == Method::None {
        return Ok(Codec::NONE);
    }
    measure(method, None, sample, threads, time)
}

/// Measures each step between which `auto` chooses, the cheapest first.
///
/// # Errors
///
/// If this build or this machine cannot do the method.
pub(crate) fn steps(
    method: Method,
    sample: &Sample,
    threads: usize,
    time: Duration,
) -> Measured<Vec<StepRate>> {
    let auto = Auto::new(method, &settings()).ok_or("the method has no steps")?;
    auto.steps()
        .map(|step| {
            Ok(StepRate {
                name: step.to_string(),
                codec: measure(method, Some((&auto, step)), sample, threads, time)?,
            })
        })
        .collect()
}

/// Bytes and times of a measurement.
#[derive(Clone, Copy, Default)]
struct Done {
    bytes: f64,
    payload: f64,
    encoding: Times,
    decoding: Times,
}

impl Done {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            payload: self.payload + other.payload,
            encoding: self.encoding.plus(other.encoding),
            decoding: self.decoding.plus(other.decoding),
        }
    }

    fn codec(&self) -> Codec {
        let bytes = self.bytes.max(1.0);
        Codec {
            encoding: self.encoding.cpu / bytes,
            decoding: self.decoding.cpu / bytes,
            size: self.payload / bytes,
            device_rate: None,
        }
    }
}

fn measure(
    method: Method,
    step: Option<(&Auto, Step)>,
    sample: &Sample,
    threads: usize,
    time: Duration,
) -> Measured<Codec> {
    let done = in_threads(threads, |number| {
        one_thread(method, step, sample, (number, threads), time)
    });
    let mut sum = Done::default();
    for done in done {
        sum = sum.plus(done?);
    }
    Ok(sum.codec())
}

fn one_thread(
    method: Method,
    step: Option<(&Auto, Step)>,
    sample: &Sample,
    (number, threads): (usize, usize),
    time: Duration,
) -> Measured<Done> {
    let settings = settings();
    let mut encoder = match step {
        Some((auto, _)) => multifd_codec::Encoder::with_steps(auto, &settings)?,
        None => multifd_codec::encoder(method, &settings)?,
    };
    let mut decoder = decoder(method, &settings)?;
    if let Some((_, step)) = step {
        encoder.set_step(step);
    }
    let (mut done, mut payloads) = (Done::default(), Vec::new());
    // The first packet allocates memory and fills the processor's caches, so it does not count.
    let mut is_warm = false;
    let end = Instant::now() + time * MOST_LOAD;
    for packet in sample.packets_from(number, threads) {
        let mut payload = Vec::new();
        let pages = Pages::private(packet, sample.page_size)?;
        let (encoded, took) = Times::of(|| encoder.encode(&pages, &mut payload));
        encoded?;
        if std::mem::replace(&mut is_warm, true) {
            done.bytes += packet.len() as f64;
            done.payload += payload.len() as f64;
            done.encoding = done.encoding.plus(took);
        }
        payloads.push((payload, packet.len()));
        let is_enough = done.encoding.cpu > time.as_secs_f64() || Instant::now() > end;
        if is_enough && payloads.len() > LEAST_PACKETS {
            break;
        }
    }
    let mut is_warm = false;
    let mut pages = PageBuffer::default();
    for (mut payload, len) in payloads {
        pages.space(len);
        let (decoded, took) =
            Times::of(|| decoder.decode_owned(&mut payload, sample.page_size, &mut pages));
        decoded?;
        if std::mem::replace(&mut is_warm, true) {
            done.decoding = done.decoding.plus(took);
        }
    }
    if done.bytes == 0.0 {
        return Err("too few pages to measure with: give at least 256 that are not zero".into());
    }
    Ok(done)
}

/// Measures a method with differences: sends all pages, changes `rewrite` bytes of each, and sends
/// them again.
///
/// # Errors
///
/// If this build or this machine cannot do the method.
pub(crate) fn differences(
    method: Method,
    sample: &Sample,
    rewrite: usize,
    time: Duration,
) -> Measured<Differences> {
    let settings = settings();
    let budget = (sample.pages() as u64 + 256) * (sample.page_size.bytes() as u64 + 64);
    set_limit(limit().max(4 * budget));
    let inner = multifd_codec::Encoder::new(method, &settings)?;
    let sent = Arc::new(Sent::new(Share::take(budget)));
    let kept = Arc::new(Kept::new(Share::take(budget)));
    let mut encoder = delta::Encoder::new(inner, Some(sent));
    let mut decoder = delta::Decoder::new(decoder(method, &settings)?, Some(kept));
    let mut image = sample.clone();
    let mut rounds = Vec::new();
    for epoch in 0..2 {
        rounds.push(round(&mut encoder, &mut decoder, &image, epoch, time)?);
        rewrite_pages(&mut image, rewrite);
    }
    match rounds.as_slice() {
        [first, later] => Ok(Differences {
            first: first.codec(),
            later: later.codec(),
        }),
        _ => Err("a round is missing".into()),
    }
}

/// Sends all pages once through encoder and decoder.
fn round(
    encoder: &mut delta::Encoder,
    decoder: &mut delta::Decoder,
    image: &Sample,
    epoch: u64,
    time: Duration,
) -> Measured<Done> {
    let size = image.page_size;
    let block = BlockName::new(b"pc.ram")?;
    let (mut done, mut first) = (Done::default(), 0_u64);
    let mut payload = Vec::new();
    let mut arrived = PageBuffer::default();
    let end = Instant::now() + time;
    for bytes in image.packets() {
        let pages = (bytes.len() / size.bytes()) as u64;
        let offsets: Vec<u64> = (first..first + pages)
            .map(|page| page * size.bytes() as u64)
            .collect();
        first += pages;
        let packet = RamPacket::new(size, block.clone(), &offsets, &[], 0)?;
        let mut buffer = PageBuffer::default();
        buffer.space(bytes.len()).copy_from_slice(bytes);
        let (popped, took) = Times::of(|| {
            encoder.push(buffer, epoch, packet);
            let popped = encoder.pop(&mut payload);
            popped.map_err(|failed| failed.error)
        });
        let (_, packet) = popped?.ok_or("no packet came out")?;
        done.bytes += bytes.len() as f64;
        done.payload += payload.len() as f64;
        done.encoding = done.encoding.plus(took);
        arrived.space(bytes.len());
        let (decoded, took) =
            Times::of(|| decoder.decode(&mut payload, &packet, &mut arrived, &|| false));
        decoded?;
        done.decoding = done.decoding.plus(took);
        if Instant::now() > end && done.bytes > (LEAST_PACKETS * bytes.len()) as f64 {
            break;
        }
    }
    Ok(done)
}

/// Changes `rewrite` bytes of each page, in words of 8 at random places.
fn rewrite_pages(image: &mut Sample, rewrite: usize) {
    let mut random = Random::new(1, rewrite as u64);
    let size = image.page_size.bytes();
    for page in image.bytes.chunks_mut(size) {
        let mut left = rewrite.min(size);
        while left > 0 {
            let at = random.below(size as u64 / 8) as usize * 8;
            let new = random.next().to_le_bytes();
            let word = page.get_mut(at..).unwrap_or_default();
            let word = word.iter_mut().zip(new).take(left.min(8));
            // `| 1` makes sure that each byte changes.
            word.for_each(|(byte, new)| *byte ^= new | 1);
            left = left.saturating_sub(8);
        }
    }
}

/// Measures the zero test: seconds for a byte.
#[must_use]
pub(crate) fn zero_test() -> f64 {
    let zeros = vec![0_u8; ZERO_BYTES];
    let (_, times) = Times::of(|| {
        let pages = zeros.chunks(PageSize::K4.bytes());
        pages
            .filter(|page| is_zero(std::hint::black_box(page)))
            .count()
    });
    times.cpu / ZERO_BYTES as f64
}

/// The number of processors that `chains` pairs of threads get, of which each thread waits for the
/// other, as in a migration. On a busy machine such threads get more than threads that compute
/// without a pause.
///
/// # Errors
///
/// If the system has no loopback.
pub(crate) fn processors_of_chains(chains: usize, time: Duration) -> io::Result<f64> {
    let begin = Instant::now();
    let chains = in_threads(chains, |_| socket_times(time));
    let wall = begin.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
    let mut cpu = 0.0;
    for chain in chains {
        let ([sender, receiver], _) = chain?;
        cpu += sender.cpu + receiver.cpu;
    }
    Ok(cpu / wall)
}

/// Measures TCP on the loopback, with writes as large as packets.
///
/// # Errors
///
/// If the system has no loopback.
pub(crate) fn socket(time: Duration) -> io::Result<Socket> {
    let ([sender, receiver], bytes) = socket_times(time)?;
    Ok(Socket {
        sending: sender.cpu / bytes,
        receiving: receiver.cpu / bytes,
    })
}

/// Sends for this time. Returns the times of sender and receiver, and the number of bytes.
fn socket_times(time: Duration) -> io::Result<([Times; 2], f64)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_write_timeout(Some(SOCKET_PATIENCE))?;
    far.set_read_timeout(Some(SOCKET_PATIENCE))?;
    let bytes = AtomicU64::new(0);
    let mut times = in_threads(2, |number| match number {
        0 => send(&near, time),
        _ => receive(&far, &bytes),
    })
    .into_iter();
    let mut next = || {
        let ended = || Err(io::Error::other("a thread has ended early"));
        times.next().unwrap_or_else(ended)
    };
    let times = [next()?, next()?];
    Ok((times, bytes.into_inner().max(1) as f64))
}

fn send(mut near: &TcpStream, time: Duration) -> io::Result<Times> {
    let packet = vec![1; SOCKET_BYTES];
    let end = Instant::now() + time;
    let (outcome, times) = Times::of(|| {
        while Instant::now() < end {
            near.write_all(&packet)?;
        }
        near.shutdown(std::net::Shutdown::Write)
    });
    outcome.map(|()| times)
}

fn receive(mut far: &TcpStream, bytes: &AtomicU64) -> io::Result<Times> {
    let mut packet = vec![0; SOCKET_BYTES];
    let (outcome, times) = Times::of(|| {
        loop {
            match far.read(&mut packet)? {
                0 => return Ok(()),
                read => bytes.fetch_add(read as u64, Ordering::Relaxed),
            };
        }
    });
    outcome.map(|()| times)
}

/// The least packets of a measurement, even if they exceed its time.
const LEAST_PACKETS: usize = 3;
/// A measurement on a busy machine ends after its time by this factor, with fewer packets.
const MOST_LOAD: u32 = 6;
/// The distance of consecutive packets: prime, and larger than any sample's number of packets.
const STRIDE: usize = 1_009;
/// Bytes of the zero test's measurement: more than a processor's caches hold.
const ZERO_BYTES: usize = 64 << 20;
/// Bytes of a write: a packet of 128 pages of 4 KiB.
const SOCKET_BYTES: usize = 512 << 10;
/// The time limit of a read or write on the loopback.
const SOCKET_PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    /// Pages of words, half of which repeat.
    fn sample() -> Sample {
        let mut random = Random::new(1, 1);
        let mut bytes = vec![0; 512 * 4096];
        for word in bytes.chunks_exact_mut(16) {
            random.fill(word.split_at_mut(8).0);
        }
        // A sample leaves zero pages out.
        bytes.extend([0; 3 * 4096]);
        Sample::new(bytes, PageSize::K4).unwrap()
    }

    #[test]
    fn zero_pages_are_left_out() {
        assert_eq!(sample().pages(), 512);
        assert!(Sample::new(vec![0; 8192], PageSize::K4).is_none());
        assert!(Sample::new(Vec::new(), PageSize::K4).is_none());
    }

    #[test]
    fn every_method_has_figures() {
        let sample = sample();
        for method in [Method::Zlib, Method::Zstd, Method::Qpl, Method::Canned] {
            let codec = fixed(method, &sample, 2, SHORT).unwrap();
            assert!((0.3..0.9).contains(&codec.size), "{method}: {codec:?}");
            assert!(codec.encoding > 0.0 && codec.decoding > 0.0, "{codec:?}");
        }
        let steps = steps(Method::Zstd, &sample, 1, SHORT).unwrap();
        assert_eq!(steps.len(), 5);
        assert!((0.99..1.02).contains(&steps[0].codec.size), "{steps:?}");
    }

    #[test]
    fn few_changed_bytes_take_few_bytes() {
        let seen = differences(Method::Zstd, &sample(), 8, SHORT).unwrap();
        assert!(seen.first.size > 0.3, "{seen:?}");
        assert!(seen.later.size < 0.02, "{seen:?}");
        let all = differences(Method::Zstd, &sample(), 4096, SHORT).unwrap();
        assert!(all.later.size > 0.3, "{all:?}");
    }

    #[test]
    fn sockets_have_a_speed() {
        let socket = socket(SHORT).unwrap();
        assert!(socket.sending > 0.0 && socket.receiving > 0.0, "{socket:?}");
        assert!(zero_test() > 0.0);
    }
}
