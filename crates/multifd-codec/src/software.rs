//! Method `zlib` by `page-deflate`, which is made for pages: streams that a stock QEMU reads as its own.
//!
//! With one stream a packet's blocks refer to the packets before, as those of a stock sender do. With several, each run of
//! pages is compressed by itself, at the same time as the others, and inflate takes one after the other as one stream.

use std::convert::Infallible;

use memchr::memmem;
use multifd_wire::{Method, PageSize};
use page_deflate::{Deflater, Effort, Habit, RunInflater, SYNC_MARK, StreamInflater, WindowSize};

use crate::channel::{ReadPayload, WritePayload};
use crate::runs::{CompressRun, WriteRuns};
use crate::streams::Crew;
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
    const METHOD: Method = Method::Zlib;

    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        self.header.write(out);
        self.deflater.compress(pages.gather(&mut self.copy), out);
        Ok(PathCounts::software(pages.len()))
    }
}

/// The sending direction, run by run.
pub(crate) struct DeflateRuns {
    header: Header,
    /// Looks at packets for all who compress runs: what a run becomes must not depend on whose turn it is.
    scout: Box<Deflater>,
    habit: Habit,
    packets: usize,
}

impl DeflateRuns {
    /// A survey takes about as long as fifteen pages.
    const PACKETS_BETWEEN_SURVEYS: usize = 8;

    pub(crate) fn on(effort: Effort, window: WindowSize, streams: Streams) -> WriteRuns<Self> {
        let deflater = || Deflater::new(window, effort);
        let codec = Self {
            header: Header(Some(window)),
            scout: Box::new(deflater()),
            habit: Habit::default(),
            packets: 0,
        };
        let Ok(runs) = WriteRuns::new(codec, streams, || Ok::<_, Infallible>(deflater()));
        runs
    }
}

impl CompressRun for DeflateRuns {
    const METHOD: Method = Method::Zlib;
    type Tools = Deflater;
    type Context = Habit;

    fn begin(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Habit {
        self.header.write(payload);
        if self.packets.is_multiple_of(Self::PACKETS_BETWEEN_SURVEYS) {
            self.habit = self.scout.survey(pages);
        }
        self.packets += 1;
        self.habit
    }

    fn compress(
        deflater: &mut Deflater,
        habit: &Habit,
        run: &[u8],
        payload: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        deflater.compress_alone(run, *habit, payload);
        Ok(())
    }
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

/// The receiving direction: fast where a packet is what senders make of it, and otherwise as tolerant as the ordinary
/// library.
pub(crate) struct Inflate {
    how: Reader,
}

enum Reader {
    Own(Box<Own>),
    Library(zlib::Inflate),
}

struct Own {
    stream: StreamInflater,
    /// For a sender's runs, each of which can be read by itself.
    crew: Crew<RunInflater>,
    /// Where the payload's runs end.
    ends: Vec<usize>,
    patience: Patience,
}

/// When to look for runs: a sender's number of streams is for the whole channel, so after some
/// packets without runs it is not worth the while; but a packet can also have none by chance, when
/// the mark between runs stands in its pages.
#[derive(Default)]
struct Patience {
    /// How many packets in a row were not made of runs.
    misses: u8,
    /// So many packets are read without looking, after each further miss twice as many.
    pause: u8,
    /// How many of them are left.
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
        let Ok(crew) = Crew::of_readers(|| Ok::<_, Infallible>(RunInflater::new()));
        let own = Own {
            stream: StreamInflater::new(),
            crew,
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
        payload: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<PathCounts, DecodeError> {
        let own = match &mut self.how {
            Reader::Own(own) => own,
            Reader::Library(library) => return library.read_payload(payload, page_size, pages),
        };
        if own.inflate_runs(payload, page_size, pages) || own.stream.inflate(payload, pages).is_ok()
        {
            return Ok(PathCounts::software(pages.len() / page_size.bytes()));
        }
        // It ends within a byte, for one, or is damaged. The library has the last word, from here on.
        let mut library = match own.stream.history() {
            Some(history) => zlib::Inflate::after(history)?,
            None => zlib::Inflate::new(),
        };
        let outcome = library.read_payload(payload, page_size, pages);
        self.how = Reader::Library(library);
        outcome
    }
}

impl Own {
    /// Reads a payload of runs, on several processors; false if that is not what it is.
    fn inflate_runs(&mut self, payload: &[u8], page_size: PageSize, pages: &mut [u8]) -> bool {
        // One page is one run, whatever the channel has.
        if pages.len() <= page_size.bytes() || !self.patience.is_worth_a_try() {
            return false;
        }
        let are_read = self.try_runs(payload, page_size, pages).is_some();
        self.patience.note(are_read);
        are_read
    }

    /// Nothing tells where a run begins but the empty block in front of it, whose bytes may also be there by chance.
    /// That does no harm: pieces which are all read to their last byte, each filling its pages without a reference to
    /// before itself, become the same pages when they are read as one.
    fn try_runs(&mut self, payload: &[u8], page_size: PageSize, pages: &mut [u8]) -> Option<()> {
        let crew = &mut self.crew;
        let count = pages.len() / page_size.bytes();
        let blocks = self.stream.blocks(payload, pages.len()).ok()?;
        let marks = memmem::find_iter(blocks, &SYNC_MARK);
        self.ends.clear();
        self.ends
            .extend(marks.map(|at| at + SYNC_MARK.len()).take(count + 1));
        let runs = self.ends.len();
        if !(2..=count).contains(&runs) || self.ends.last() != Some(&blocks.len()) {
            return None;
        }
        let streams = Streams::new(u8::try_from(runs).ok()?).ok()?;
        let mut pieces = crew.no_places();
        let (mut start, mut rest) = (0, &mut *pages);
        for (&end, run) in self.ends.iter().zip(streams.runs(count)) {
            let (place, behind) = rest.split_at_mut_checked(run * page_size.bytes())?;
            pieces.push((blocks.get(start..end)?, place));
            (start, rest) = (end, behind);
        }
        let read =
            |inflater: &mut RunInflater, run: &[u8], pages: &mut [u8]| inflater.inflate(run, pages);
        crew.decompress(pieces, read).ok()?;
        self.stream.skip(pages);
        Some(())
    }
}

/// A channel is read in one go after so many packets without runs: each try may cost as much again
/// as reading does.
const MOST_MISSES: u8 = 2;
const LEAST_PAUSE: u8 = 4;
/// Then a channel without runs is read at most a sixty-fourth more slowly than without any tries.
const MOST_PAUSE: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;

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

    /// Marks that stand in two packets by chance do not end it for the channel.
    #[test]
    fn bad_luck_passes() {
        let streams = Streams::new(3).unwrap();
        let mut deflate = DeflateRuns::on(Effort::Balanced, WindowSize::default(), streams);
        let (mut inflate, mut payload) = (Inflate::new(), Vec::new());
        let Reader::Own(own) = &mut inflate.how else {
            panic!("no packet has been read")
        };
        let mut read_at_once = Vec::new();
        for number in 0..40 {
            // Noise with a mark in it is in the first three.
            let seed = if number < 3 { 0 } else { number };
            let sent = packet(64, seed);
            payload.clear();
            let pages = Pages::private(&sent, PageSize::K4).unwrap();
            deflate.write_payload(&pages, &mut payload).unwrap();
            let mut arrived = vec![0; sent.len()];
            if own.inflate_runs(&payload, PageSize::K4, &mut arrived) {
                read_at_once.push(number);
            } else {
                own.stream.inflate(&payload, &mut arrived).unwrap();
            }
            assert!(arrived == sent, "packet {number}");
        }
        // Two misses, a pause, and then every one.
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
    fn runs_are_read_by_themselves() {
        for streams in [1, 2, 3, 16, 128] {
            let streams = Streams::new(streams).unwrap();
            let mut deflate = DeflateRuns::on(Effort::Balanced, WindowSize::default(), streams);
            let (mut inflate, mut payload) = (Inflate::new(), Vec::new());
            let Reader::Own(own) = &mut inflate.how else {
                panic!("no packet has been read")
            };
            let mut together = 0;
            for (seed, pages) in [128, 1, 7, 2, 64, 128, 3].into_iter().enumerate() {
                let sent = packet(pages, seed);
                payload.clear();
                let pages = Pages::private(&sent, PageSize::K4).unwrap();
                deflate.write_payload(&pages, &mut payload).unwrap();
                let mut arrived = vec![0; sent.len()];
                if own.inflate_runs(&payload, PageSize::K4, &mut arrived) {
                    together += 1;
                } else {
                    own.stream.inflate(&payload, &mut arrived).unwrap();
                }
                assert!(arrived == sent, "{streams} streams, packet {seed}");
            }
            // All of several pages but the first, in which marks stand by chance.
            let expected = if streams.value() == 1 { 0 } else { 5 };
            assert_eq!(together, expected, "{streams}");
        }
    }
}
