//! Method `zlib` by `page-deflate`, which is optimised for pages: streams that a stock QEMU reads
//! as its own.
//!
//! A packet consists of runs of pages, which are compressed independently, with several streams in
//! parallel. Inflate reads them in sequence as one stream. A large packet has at least two runs,
//! since one processor reads two at a time a quarter to a half faster than one after the other.

use std::convert::Infallible;

use memchr::memmem;
use multifd_wire::{Method, PageSize};
use page_deflate::{
    Deflater, Effort, Habit, InflateError, RunInflater, SYNC_MARK, StreamInflater, WindowSize,
};

use crate::channel::{Arrived, ReadPayload};
use crate::encoder::WritePayload;
use crate::runs::{BeginRuns, WriteRuns};
use crate::settings::run;
use crate::streams::Readers;
use crate::{DecodeError, EncodeError, Pages, PathCounts, Streams, zlib};

/// The sending direction, one stream for the whole channel.
pub(crate) struct Deflate {
    deflater: Box<Deflater>,
    header: Header,
    copy: Vec<u8>,
}

impl Deflate {
    pub(crate) fn new(effort: Effort, window: WindowSize) -> Self {
        Self {
            deflater: Box::new(Deflater::new(window, effort)),
            header: Header(Some(window)),
            copy: Vec::new(),
        }
    }
}

impl WritePayload for Deflate {
    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        self.header.write(out);
        compress(&mut self.deflater, pages, &mut self.copy, out);
        Ok(PathCounts::software(pages.len()))
    }
}

/// The sending direction, one stream for the whole channel, with an effort that may be another one
/// for each packet.
pub(crate) struct DeflateSteps {
    window: WindowSize,
    /// The encoder of each effort, once it was needed.
    deflaters: [Option<Box<Deflater>>; Effort::ALL.len()],
    step: usize,
    header: Header,
    copy: Vec<u8>,
}

impl DeflateSteps {
    pub(crate) fn new(window: WindowSize) -> Self {
        Self {
            window,
            deflaters: Effort::ALL.map(|_| None),
            step: 0,
            header: Header(Some(window)),
            copy: Vec::new(),
        }
    }
}

impl WritePayload for DeflateSteps {
    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        self.header.write(out);
        // The first step stores.
        let effort = self.step.checked_sub(1);
        let place = effort.and_then(|index| self.deflaters.get_mut(index));
        let (Some(place), Some(&effort)) = (place, effort.and_then(|index| Effort::ALL.get(index)))
        else {
            page_deflate::store(pages.gather(&mut self.copy), out);
            return Ok(PathCounts::raw(pages.len()));
        };
        let new = || Box::new(Deflater::new(self.window, effort));
        let deflater = place.get_or_insert_with(new);
        compress(deflater, pages, &mut self.copy, out);
        Ok(PathCounts::software(pages.len()))
    }

    fn set_step(&mut self, step: usize) {
        if step != self.step {
            // The window of this effort lacks the output of other efforts.
            for deflater in self.deflaters.iter_mut().flatten() {
                deflater.forget();
            }
            self.step = step;
        }
    }
}

/// Compresses a packet on one processor.
fn compress(deflater: &mut Deflater, pages: &Pages<'_>, copy: &mut Vec<u8>, out: &mut Vec<u8>) {
    let runs = runs(1, pages.len(), pages.page_size());
    let mut rest = pages.gather(copy);
    if runs == 1 {
        deflater.compress(rest, out);
        return;
    }
    for index in 0..runs {
        let count = run(index, runs, pages.len()).len();
        let (pages, others) = rest.split_at(count * pages.page_size().bytes());
        deflater.forget();
        deflater.compress(pages, out);
        rest = others;
    }
}

/// The number of runs of a packet in a channel with this number of streams: twice as many, unless
/// they would become so short that their codes cost more than reading two at a time gains.
fn runs(streams: usize, pages: usize, page_size: PageSize) -> usize {
    match (pages * page_size.bytes()).checked_div(2 * streams) {
        Some(SHORTEST_RUN..) => 2 * streams,
        _ => streams.min(pages),
    }
}

/// [`RunInflater::inflate_all`] decodes two runs at once.
const TOGETHER: usize = 2;
/// Half of what an encoder writes under one code.
const SHORTEST_RUN: usize = 128 << 10;

/// The sending direction, run by run.
pub(crate) struct DeflateRuns {
    header: Header,
    /// Surveys packets for all run writers: a run's output must not depend on the thread that
    /// writes it.
    scout: Box<Deflater>,
    habit: Habit,
    packets: usize,
}

impl DeflateRuns {
    /// A survey takes about as long as 27 pages.
    const PACKETS_BETWEEN_SURVEYS: usize = 8;

    pub(crate) fn on(effort: Effort, window: WindowSize, streams: Streams) -> WriteRuns<Self> {
        let deflater = || Deflater::new(window, effort);
        let codec = Self {
            header: Header(Some(window)),
            scout: Box::new(deflater()),
            habit: Habit::default(),
            packets: 0,
        };
        let tools = || Ok::<_, Infallible>(deflater());
        let Ok(runs) = WriteRuns::new(codec, streams, tools, deflate_run);
        runs
    }
}

impl BeginRuns for DeflateRuns {
    type Tools = Deflater;
    type Context = Habit;

    fn runs(streams: Streams, pages: usize, page_size: PageSize) -> usize {
        runs(streams.value(), pages, page_size)
    }

    fn begin(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Habit {
        self.header.write(payload);
        if self.packets.is_multiple_of(Self::PACKETS_BETWEEN_SURVEYS) {
            self.habit = self.scout.survey(pages);
        }
        self.packets += 1;
        self.habit
    }
}

#[expect(clippy::unnecessary_wraps, reason = "runs of other methods can fail")]
fn deflate_run(
    deflater: &mut Deflater,
    habit: &Habit,
    run: &[u8],
    payload: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    deflater.compress_alone(run, *habit, payload);
    Ok(())
}

/// The header of a channel's stream, until it is written.
struct Header(Option<WindowSize>);

impl Header {
    fn write(&mut self, payload: &mut Vec<u8>) {
        if let Some(window) = self.0.take() {
            payload.extend_from_slice(&window.zlib_header());
        }
    }
}

/// The receiving direction: fast for packets in the senders' usual form, and otherwise as tolerant
/// as the ordinary library.
pub(crate) struct Inflate {
    how: Reader,
}

enum Reader {
    Own(Box<Own>),
    Library(zlib::Inflate),
}

struct Own {
    stream: StreamInflater,
    /// For a sender's runs, which can be read independently.
    readers: Readers<RunInflater, (), InflateError>,
    /// The ends of the payload's runs.
    ends: Vec<usize>,
    patience: Patience,
}

/// Decides when to look for runs. A sender's number of streams holds for the whole channel, so
/// after some packets without runs the search does not pay; but a packet can also seem to have none
/// by chance, if its data contains the mark between runs.
#[derive(Default)]
struct Patience {
    /// The number of consecutive packets without runs.
    misses: u8,
    /// The number of packets read without a search; it doubles after each further miss.
    pause: u8,
    /// The number of these packets left.
    left: u8,
}

impl Patience {
    fn is_worth_a_try(&mut self) -> bool {
        let is_worth_it = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_worth_it
    }

    fn note(&mut self, are_read: bool) {
        if are_read {
            *self = Self::default();
            return;
        }
        self.misses = self.misses.saturating_add(1);
        if self.misses >= MOST_MISSES {
            self.pause = self.pause.saturating_mul(2).clamp(LEAST_PAUSE, MOST_PAUSE);
            self.left = self.pause;
        }
    }
}

impl Inflate {
    pub(crate) fn new() -> Self {
        let inflater = || Ok::<_, Infallible>(RunInflater::new());
        let Ok(readers) = Readers::new(
            inflater,
            |inflater, (), runs| inflater.inflate_all(runs),
            TOGETHER,
        );
        let own = Own {
            stream: StreamInflater::new(),
            readers,
            ends: Vec::new(),
            patience: Patience::default(),
        };
        Self {
            how: Reader::Own(Box::new(own)),
        }
    }
}

impl ReadPayload for Inflate {
    const METHOD: Method = Method::Zlib;

    fn read_payload(
        &mut self,
        packet: &mut Arrived,
        page_size: PageSize,
    ) -> Result<PathCounts, DecodeError> {
        let own = match &mut self.how {
            Reader::Own(own) => own,
            Reader::Library(library) => return library.read_payload(packet, page_size),
        };
        if own.inflate_runs(packet, page_size) || own.inflate_stream(packet) {
            let pages = packet.pages.as_ref().len() / page_size.bytes();
            return Ok(PathCounts::software(pages));
        }
        // It is damaged, or for example ends within a byte. The library decides, from here on.
        let mut library = match own.stream.history() {
            Some(history) => zlib::Inflate::after(history)?,
            None => zlib::Inflate::new(),
        };
        let outcome = library.read_payload(packet, page_size);
        self.how = Reader::Library(library);
        outcome
    }
}

impl Own {
    /// Reads a payload in one go; returns false if the library has to decide about it.
    fn inflate_stream(&mut self, packet: &mut Arrived) -> bool {
        let pages = packet.pages.as_mut();
        self.stream.inflate(&packet.payload, pages).is_ok()
    }

    /// Reads a payload of runs on several processors; returns false if it is none.
    fn inflate_runs(&mut self, packet: &mut Arrived, page_size: PageSize) -> bool {
        // One page is one run, whatever the channel's number of streams.
        let is_one = packet.pages.as_ref().len() <= page_size.bytes();
        if is_one || !self.patience.is_worth_a_try() {
            return false;
        }
        let are_read = self.try_runs(packet, page_size).is_some();
        self.patience.note(are_read);
        are_read
    }

    /// Only the empty block before a run shows its start, and these bytes can also occur by chance.
    /// That is harmless: if all pieces are read to their last byte, and each fills its pages
    /// without a reference to earlier data, reading them as one stream gives the same pages.
    fn try_runs(&mut self, packet: &mut Arrived, page_size: PageSize) -> Option<()> {
        let Self {
            stream,
            readers,
            ends,
            ..
        } = self;
        let len_bytes = packet.pages.as_ref().len();
        let count = len_bytes / page_size.bytes();
        let outcome = readers.read(packet, (), |payload, pieces| {
            let blocks = stream.blocks(payload, len_bytes).ok()?;
            let marks = memmem::find_iter(blocks, &SYNC_MARK);
            ends.clear();
            ends.extend(marks.map(|at| at + SYNC_MARK.len()).take(count + 1));
            let runs = ends.len();
            if !(2..=count).contains(&runs) || ends.last() != Some(&blocks.len()) {
                return None;
            }
            let streams = Streams::new(u8::try_from(runs).ok()?).ok()?;
            // The blocks follow the header.
            let header = payload.len().checked_sub(blocks.len())?;
            let mut start = 0;
            for (&end, run) in ends.iter().zip(streams.runs(count)) {
                pieces.push(header + start..header + end, run * page_size.bytes())?;
                start = end;
            }
            Some(())
        });
        outcome.ok()??;
        self.stream.skip(packet.pages.as_ref());
        Some(())
    }
}

/// After this many consecutive packets without runs, a channel is read in one go: each search may
/// double the cost of reading.
const MOST_MISSES: u8 = 2;
const LEAST_PAUSE: u8 = 4;
/// This limits the searches' cost in a channel without runs to a sixty-fourth.
const MOST_PAUSE: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::WriteTogether;

    fn packet(pages: usize, seed: usize) -> Vec<u8> {
        let text = |page: usize| format!("page {page} of packet {seed}, {} ", page * seed);
        let noise = |page: usize| {
            let mut state = page as u64 + 1;
            let mut next = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            };
            (0..4096).map(move |_| next()).collect::<Vec<u8>>()
        };
        (0..pages)
            .flat_map(|page| match page % 5 {
                // A mark where no run ends.
                4 if seed == 0 => [&noise(page)[..2000], &SYNC_MARK, &noise(page)[2004..]].concat(),
                3 => noise(page),
                _ => text(page).bytes().cycle().take(4096).collect(),
            })
            .collect()
    }

    /// Writes the packet as it arrives.
    fn write(deflate: &mut WriteRuns<DeflateRuns>, sent: &[u8]) -> Arrived {
        let mut arrived = Arrived {
            payload: Vec::new(),
            pages: vec![0; sent.len()].into(),
        };
        deflate.push(sent.to_vec().into(), PageSize::K4).unwrap();
        deflate.pop(&mut arrived.payload).unwrap().unwrap();
        arrived
    }

    /// Marks that occur in two packets by chance do not end the search for the channel.
    #[test]
    fn bad_luck_passes() {
        let streams = Streams::new(3).unwrap();
        let mut deflate = DeflateRuns::on(Effort::Balanced, WindowSize::default(), streams);
        let mut inflate = Inflate::new();
        let Reader::Own(own) = &mut inflate.how else {
            panic!("no packet has been read")
        };
        let mut read_at_once = Vec::new();
        for number in 0..40 {
            // The first three contain noise with a mark.
            let seed = if number < 3 { 0 } else { number };
            let sent = packet(64, seed);
            let mut arrived = write(&mut deflate, &sent);
            if own.inflate_runs(&mut arrived, PageSize::K4) {
                read_at_once.push(number);
            } else {
                assert!(own.inflate_stream(&mut arrived));
            }
            assert!(arrived.pages.as_ref() == sent, "packet {number}");
        }
        // Two misses, a pause, and then every packet.
        let first = 2 + usize::from(LEAST_PAUSE);
        assert!(read_at_once.into_iter().eq(first..40));
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut patience = Patience::default();
        let tries = |patience: &mut Patience| {
            let tried = (0..1000).filter(|_| {
                let is_tried = patience.is_worth_a_try();
                if is_tried {
                    patience.note(false);
                }
                is_tried
            });
            tried.count()
        };
        assert_eq!(tries(&mut patience), 20);
        assert!((15..=16).contains(&tries(&mut patience)));
        while !patience.is_worth_a_try() {}
        patience.note(true);
        assert!(patience.is_worth_a_try());
    }

    #[test]
    fn a_large_packet_of_one_stream_has_two_runs() {
        let mut deflate = Deflate::new(Effort::Balanced, WindowSize::default());
        let mut inflate = Inflate::new();
        let Reader::Own(own) = &mut inflate.how else {
            panic!("no packet has been read")
        };
        for (seed, (pages, expected)) in [(128, 2), (1, 1), (64, 2), (63, 1), (127, 2)]
            .into_iter()
            .enumerate()
        {
            let sent = packet(pages, seed + 1);
            assert_eq!(runs(1, pages, PageSize::K4), expected);
            let mut arrived = Arrived {
                payload: Vec::new(),
                pages: vec![0; sent.len()].into(),
            };
            let pages = Pages::private(&sent, PageSize::K4).unwrap();
            let written = deflate.write_payload(&pages, &mut arrived.payload);
            assert_eq!(written.unwrap(), PathCounts::software(pages.len()));
            assert_eq!(
                own.inflate_runs(&mut arrived, PageSize::K4),
                expected == 2,
                "{seed}"
            );
            if expected == 1 {
                assert!(own.inflate_stream(&mut arrived));
            }
            assert!(arrived.pages.as_ref() == sent, "{seed}");
        }
    }

    #[test]
    fn runs_are_read_by_themselves() {
        for streams in [1, 2, 3, 16, 128] {
            let streams = Streams::new(streams).unwrap();
            let mut deflate = DeflateRuns::on(Effort::Balanced, WindowSize::default(), streams);
            let mut inflate = Inflate::new();
            let Reader::Own(own) = &mut inflate.how else {
                panic!("no packet has been read")
            };
            let mut together = 0;
            for (seed, pages) in [128, 1, 7, 2, 64, 128, 3].into_iter().enumerate() {
                let sent = packet(pages, seed);
                let mut arrived = write(&mut deflate, &sent);
                if own.inflate_runs(&mut arrived, PageSize::K4) {
                    together += 1;
                } else {
                    assert!(own.inflate_stream(&mut arrived));
                }
                let arrived = arrived.pages;
                assert!(arrived.as_ref() == sent, "{streams} streams, packet {seed}");
            }
            // All packets of several pages except the first, in which marks occur by chance.
            let expected = if streams.value() == 1 { 0 } else { 5 };
            assert_eq!(together, expected, "{streams}");
        }
    }
}
