//! Method `zlib` by this crate's own deflate, which is made for pages: streams that a stock QEMU reads as its own.
//!
//! With one stream a packet's blocks refer to the packets before, as those of a stock sender do. With several, each run of
//! pages is compressed by itself, at the same time as the others, and inflate takes one after the other as one stream.

use std::convert::Infallible;

use multifd_wire::{Method, PageSize};

use crate::channel::{ReadPayload, WritePayload};
use crate::deflate::{Deflater, Effort, Habit, StreamInflater, WindowSize};
use crate::streams::Crew;
use crate::{DecodeError, EncodeError, Pages, PathCounts, Streams, zlib};

/// The sending direction.
pub(crate) struct Deflate {
    window: WindowSize,
    how: How,
    is_started: bool,
    copy: Vec<u8>,
}

enum How {
    One(Box<Deflater>),
    Runs(Runs),
}

/// The sending direction, run by run.
struct Runs {
    crew: Crew<Deflater>,
    streams: Streams,
    /// Looks at packets for all of the crew: what a run becomes must not depend on whose turn it is.
    scout: Box<Deflater>,
    habit: Habit,
    packets: usize,
}

impl Deflate {
    pub(crate) fn new(effort: Effort, window: WindowSize, streams: Streams) -> Self {
        let deflater = || Deflater::new(window, effort);
        let how = if streams == Streams::default() {
            How::One(Box::new(deflater()))
        } else {
            let Ok(crew) = Crew::new(streams, || Ok::<_, Infallible>(deflater()));
            How::Runs(Runs {
                crew,
                streams,
                scout: Box::new(deflater()),
                habit: Habit::default(),
                packets: 0,
            })
        };
        Self {
            window,
            how,
            is_started: false,
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
        if !std::mem::replace(&mut self.is_started, true) {
            out.extend_from_slice(&self.window.zlib_header());
        }
        let bytes = pages.gather(&mut self.copy);
        match &mut self.how {
            How::One(deflater) => deflater.compress(bytes, out),
            How::Runs(runs) => runs.compress(bytes, pages, out),
        }
        Ok(PathCounts::software(pages.len()))
    }
}

impl Runs {
    /// A survey takes about as long as ten pages.
    const PACKETS_BETWEEN_SURVEYS: usize = 8;

    fn compress(&mut self, bytes: &[u8], pages: &Pages<'_>, out: &mut Vec<u8>) {
        if self.packets.is_multiple_of(Self::PACKETS_BETWEEN_SURVEYS) {
            self.habit = self.scout.survey(bytes);
        }
        self.packets += 1;
        let habit = self.habit;
        let page_bytes = pages.page_size().bytes();
        let runs = self.streams.runs(pages.len()).map(|run| run * page_bytes);
        let Ok(_) = self.crew.compress(bytes, runs, out, |deflater, run, out| {
            deflater.compress_alone(run, habit, out);
            Ok::<_, Infallible>(())
        });
    }
}

/// The receiving direction: fast where a packet is what senders make of it, and otherwise as tolerant as the ordinary
/// library.
pub(crate) struct Inflate {
    how: Reader,
}

enum Reader {
    Own(StreamInflater),
    Library(zlib::Inflate),
}

impl Inflate {
    pub(crate) fn new() -> Self {
        Self {
            how: Reader::Own(StreamInflater::new()),
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
        if own.inflate(payload, pages).is_ok() {
            return Ok(PathCounts::software(pages.len() / page_size.bytes()));
        }
        // It ends within a byte, for one, or is damaged. The library has the last word, from here on.
        let mut library = match own.history() {
            Some(history) => zlib::Inflate::after(history)?,
            None => zlib::Inflate::new(),
        };
        let outcome = library.read_payload(payload, page_size, pages);
        self.how = Reader::Library(library);
        outcome
    }
}
