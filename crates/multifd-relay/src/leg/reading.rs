//! Reads frames, and gives the bytes in them.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::Duration;

use multifd_codec::ahead::Ahead;
use multifd_transport::Stream;

use super::FarFailure;
use crate::trunk::{
    Arrived, Compression, Decompressor, Digest, Frame, FrameFault, FrameReader, NoCompression,
    Packed, Parcel,
};

/// The longest pause inside a frame. A frame is written in one go, so a longer pause means that the
/// host or the network has gone, or that the frame's length was changed on the way.
pub(super) const FRAME_REST: Duration = match cfg!(test) {
    true => Duration::from_millis(100),
    false => Duration::from_secs(30),
};

/// The most bytes of peeked frames that are kept. No first packet of a channel is longer. One more
/// frame is in its reader.
pub(super) const MOST_AHEAD: usize = 64 << 10;

/// The connection that brings the frames.
pub(super) trait Over {
    /// The connection.
    fn under(&self) -> &Stream;

    /// Counts bytes that have come.
    fn count(&self, bytes: usize);

    /// Takes a note. Returns whether notes are allowed.
    fn note(&self, note: &[u8]) -> bool;
}

/// The frames of one direction.
///
/// Compressed frames that are there together are decompressed together, on several processors.
/// Their bytes are given in order.
pub(super) struct Reading {
    frames: FrameReader,
    parcels: Option<Parcels>,
    /// The parcel that gives bytes. Without one, `frames` gives them.
    open: Option<Parcel>,
    /// The last frame has bytes in `frames`, after all parcels. No further frame is read before
    /// these are given.
    is_held: bool,
    /// Peeked bytes of frames before the last one that were not read.
    ahead: VecDeque<u8>,
    /// The bytes of the last frame that were not read.
    rest: Range<usize>,
    /// The end of the direction, after all these bytes.
    end: Option<End>,
}

/// Compressed frames that are being decompressed.
struct Parcels {
    line: Ahead<Parcel>,
    count: usize,
    /// Finished parcels, whose memory is used again.
    spare: Vec<Parcel>,
}

#[derive(Clone)]
enum End {
    Clean,
    Failed(FarFailure),
    Broken(FrameFault),
    Noted,
}

impl Reading {
    pub(super) fn new(digest: Digest, compression: Compression) -> Result<Self, NoCompression> {
        Ok(Self {
            frames: FrameReader::new(digest, compression)?,
            parcels: match compression {
                Compression::None => None,
                Compression::Zstd => Some(Parcels {
                    line: Ahead::new(Decompressor::new)?,
                    count: 0,
                    spare: Vec::new(),
                }),
            },
            open: None,
            is_held: false,
            ahead: VecDeque::new(),
            rest: 0..0,
            end: None,
        })
    }

    /// Gives bytes. `Ok(0)` is the peer's clean end.
    pub(super) fn read(
        &mut self,
        over: &impl Over,
        buffer: &mut [u8],
        wait: bool,
    ) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        match self.has_rest() {
            true => Ok(self.take_rest(buffer, false)),
            false => self.fill(over, buffer, wait),
        }
    }

    /// Copies the next bytes without taking them.
    pub(super) fn peek(&mut self, over: &impl Over, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(MOST_AHEAD);
        while self.rest_len() < wanted {
            self.set_aside();
            // No byte of the frame was read.
            match self.fill(over, &mut [], false) {
                Ok(_) if self.rest.is_empty() => break,
                Ok(_) => {}
                // The read that reaches this point reports it.
                Err(_) if self.has_rest() => break,
                Err(error) => return Err(error),
            }
        }
        match self.ended() {
            Some(end) if !self.has_rest() => end,
            _ => Ok(self.take_rest(buffer, true)),
        }
    }

    /// Whether a read would return at once even if the socket has nothing.
    pub(super) fn has_more(&self) -> bool {
        self.has_rest() || self.has_parcels() || self.is_held || self.end.is_some()
    }

    fn has_rest(&self) -> bool {
        !self.rest.is_empty() || !self.ahead.is_empty()
    }

    fn rest_len(&self) -> usize {
        self.ahead.len().saturating_add(self.rest.len())
    }

    fn has_parcels(&self) -> bool {
        self.parcels
            .as_ref()
            .is_some_and(|parcels| parcels.count > 0)
    }

    /// The content of the last frame.
    fn content(&self) -> &[u8] {
        match &self.open {
            // A parcel with a fault never gives bytes.
            Some(parcel) => parcel.content().unwrap_or_default(),
            None => self.frames.content(),
        }
    }

    /// The bytes of the last frame that were not read.
    fn left(&self) -> &[u8] {
        self.content().get(self.rest.clone()).unwrap_or_default()
    }

    /// Gives bytes of earlier frames.
    fn take_rest(&mut self, buffer: &mut [u8], keeps: bool) -> usize {
        let (front, back) = self.ahead.as_slices();
        let mut taken = [0; 3];
        let mut left = buffer;
        for (taken, part) in taken.iter_mut().zip([front, back, self.left()]) {
            *taken = copy(part, left);
            left = left.get_mut(*taken..).unwrap_or_default();
        }
        let [front, back, rest] = taken;
        let ahead = front.saturating_add(back);
        if !keeps {
            self.ahead.drain(..ahead);
            if self.ahead.is_empty() && self.ahead.capacity() > 0 {
                self.ahead = VecDeque::new();
            }
            self.rest.start = self.rest.start.saturating_add(rest);
        }
        ahead.saturating_add(rest)
    }

    /// Keeps the rest of the last frame, so that the next one can be read.
    fn set_aside(&mut self) {
        let mut ahead = std::mem::take(&mut self.ahead);
        ahead.extend(self.left());
        self.ahead = ahead;
        self.rest = 0..0;
    }

    /// The end of the direction, if no bytes are left before it.
    fn ended(&self) -> Option<io::Result<usize>> {
        if self.has_parcels() || self.is_held {
            return None;
        }
        Some(match self.end.as_ref()? {
            End::Clean => Ok(0),
            End::Failed(failure) => Err(io::Error::other(failure.clone())),
            End::Broken(fault) => Err(io::Error::new(io::ErrorKind::InvalidData, *fault)),
            End::Noted => {
                let words = "the other relay sends notes that were not agreed on, or too many";
                Err(io::Error::new(io::ErrorKind::InvalidData, words))
            }
        })
    }

    /// Reads frames until one brings bytes, and puts as many of these into `buffer` as fit.
    fn fill(&mut self, over: &impl Over, buffer: &mut [u8], wait: bool) -> io::Result<usize> {
        loop {
            if let Some(end) = self.ended() {
                return end;
            }
            let has_parcels = self.has_parcels();
            if self.may_receive() {
                match self.receive(over, wait && !has_parcels) {
                    Ok(()) => continue,
                    // The read that reaches this point reports it.
                    Err(_) if has_parcels => {}
                    Err(error) => return Err(error),
                }
            }
            let parcel = self.parcels.as_mut().and_then(Parcels::pop);
            if let Some(fault) = parcel.as_ref().and_then(|parcel| parcel.content().err()) {
                // Bytes after the end have no meaning.
                self.parcels = None;
                self.is_held = false;
                self.end = Some(End::Broken(fault));
                continue;
            }
            if parcel.is_none() && !std::mem::take(&mut self.is_held) {
                continue;
            }
            let read = std::mem::replace(&mut self.open, parcel);
            if let (Some(parcels), Some(read)) = (&mut self.parcels, read) {
                parcels.spare.push(read);
            }
            let count = copy(self.content(), buffer);
            self.rest = count..self.content().len();
            return Ok(count);
        }
    }

    /// Whether there is room for the next frame.
    fn may_receive(&self) -> bool {
        let has_room = |parcels: &Parcels| parcels.count == 0 || parcels.line.has_room();
        let has_room = self.parcels.as_ref().is_none_or(has_room);
        has_room && !self.is_held && self.end.is_none()
    }

    /// Reads at least one byte of a frame.
    fn receive(&mut self, over: &impl Over, wait: bool) -> io::Result<()> {
        let is_late = wait && self.frames.is_inside_a_frame();
        if is_late && !over.under().is_readable_within(FRAME_REST)? {
            let words = "the other relay stopped inside a frame";
            return Err(io::Error::new(io::ErrorKind::TimedOut, words));
        }
        let space = self.frames.space();
        let count = match wait {
            true => over.under().read_some(space)?,
            false => over.under().read_now(space)?,
        };
        over.count(count);
        if count == 0 {
            let words = "the other relay has gone";
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, words));
        }
        let arrived = match self.parcels {
            Some(_) => self.frames.filled_packed(count),
            None => { self.frames.filled(count) }.map(|frame| frame.map(Arrived::Frame)),
        };
        match arrived {
            Err(fault) => self.end = Some(End::Broken(fault)),
            Ok(Some(Arrived::Packed(packed))) => {
                if let Some(parcels) = &mut self.parcels {
                    parcels.begin(&packed);
                }
            }
            Ok(Some(Arrived::Frame(frame))) => match frame {
                Frame::Data(_) => self.is_held = true,
                Frame::End => self.end = Some(End::Clean),
                Frame::Failure(failure) => {
                    let words = failure.words;
                    self.end = Some(End::Failed(FarFailure {
                        words,
                        was_complete: false,
                    }));
                }
                Frame::Note(note) if !over.note(note) => self.end = Some(End::Noted),
                Frame::Note(_) | Frame::Alive | Frame::Begun => {}
            },
            Ok(None) => {}
        }
        Ok(())
    }
}

impl Parcels {
    /// Takes a compressed frame.
    fn begin(&mut self, packed: &Packed<'_>) {
        let mut parcel = self.spare.pop().unwrap_or_default();
        parcel.fill(packed);
        self.line.push(parcel);
        self.count = self.count.saturating_add(1);
    }

    /// The oldest compressed frame, decompressed.
    fn pop(&mut self) -> Option<Parcel> {
        let parcel = self.line.pop()?;
        self.count = self.count.saturating_sub(1);
        Some(parcel)
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    if let (Some(from), Some(to)) = (from.get(..count), to.get_mut(..count)) {
        to.copy_from_slice(from);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use twox_hash::XxHash3_64;

    use crate::trunk::FrameWriter;

    impl Over for Stream {
        fn under(&self) -> &Stream {
            self
        }

        fn count(&self, _: usize) {}

        fn note(&self, note: &[u8]) -> bool {
            note == b"expected"
        }
    }

    fn zstd() -> Compression {
        Compression::available()[0]
    }

    /// Text of its own for each number.
    fn text(number: usize, len: usize) -> Vec<u8> {
        let words = format!("{number} is one of {len}, ").into_bytes();
        words.into_iter().cycle().take(len).collect()
    }

    /// Frames of many kinds, and the bytes in them.
    fn frames(writer: &mut FrameWriter) -> (Vec<u8>, Vec<u8>) {
        let (mut frames, mut bytes) = (Vec::new(), Vec::new());
        for number in 0..40 {
            let len = [100_000, 3, 131_072, 700, 1][number % 5];
            let text = text(number, len);
            match number % 7 {
                3 => frames.extend(writer.alive().unwrap()),
                5 => writer.note(b"expected", &mut frames).unwrap(),
                _ => {}
            }
            if !writer.compressed(&text, &mut frames).unwrap() || number % 11 == 4 {
                writer.append(&text, &mut frames).unwrap();
                if number % 11 == 4 && text.len() > 100 {
                    bytes.extend_from_slice(&text);
                }
            }
            bytes.extend_from_slice(&text);
        }
        (frames, bytes)
    }

    /// All that is read of `frames`, and how it ends.
    fn read(frames: &[u8], looks: bool, wait: bool) -> (Vec<u8>, io::Result<usize>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::from(ours);
        let mut reading = Reading::new(Digest::Xxh3, zstd()).unwrap();
        let (mut all, mut buffer) = (Vec::new(), vec![0; 50_000]);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = (&theirs).write_all(frames);
                let _ = theirs.shutdown(Shutdown::Write);
            });
            loop {
                if looks {
                    let seen = reading.peek(&stream, &mut buffer[..100]);
                    let seen = seen.map(|count| buffer[..count].to_vec());
                    let outcome = reading.read(&stream, &mut buffer, wait);
                    if let (Ok(seen), Ok(count)) = (seen, &outcome) {
                        assert!(buffer[..*count].starts_with(&seen) || seen.len() > *count);
                        all.extend_from_slice(&buffer[..*count]);
                    } else if let Ok(count) = outcome {
                        all.extend_from_slice(&buffer[..count]);
                    }
                }
                match reading.read(&stream, &mut buffer, wait) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(count @ 1..) => all.extend_from_slice(&buffer[..count]),
                    end => {
                        let again = reading.read(&stream, &mut buffer, true);
                        let kind = |end: &io::Result<usize>| {
                            end.as_ref().map(|count| *count).map_err(io::Error::kind)
                        };
                        assert_eq!(kind(&again), kind(&end));
                        return (all, end);
                    }
                }
            }
        })
    }

    #[test]
    fn bytes_come_in_order_from_frames_of_all_kinds() {
        let mut writer = FrameWriter::new(Digest::Xxh3, zstd()).unwrap();
        let (mut frames, bytes) = frames(&mut writer);
        frames.extend(writer.end().unwrap());
        for (looks, wait) in [(false, true), (false, false), (true, true), (true, false)] {
            let (all, end) = read(&frames, looks, wait);
            assert!(
                all == bytes,
                "{looks} {wait}: {} of {}",
                all.len(),
                bytes.len()
            );
            assert_eq!(end.unwrap(), 0);
        }
    }

    #[test]
    fn all_before_a_fault_is_given_and_nothing_behind_it() {
        if zstd() == Compression::None {
            return;
        }
        for lie in ["zstd", "digest", "note", "cut"] {
            let mut writer = FrameWriter::new(Digest::Xxh3, zstd()).unwrap();
            let (mut frames, bytes) = frames(&mut writer);
            let mut bad = vec![1, 0, 0, 0, 0, 0, 0, 24];
            let mut body = 1000_u32.to_be_bytes().to_vec();
            body.extend_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
            body.extend_from_slice(&[0x20; 16]);
            let covered = [&bad[..], &body].concat();
            let digest = XxHash3_64::oneshot_with_seed(writer.frames(), &covered);
            match lie {
                "zstd" => bad.extend(digest.to_be_bytes()),
                _ => bad.extend((digest ^ 1).to_be_bytes()),
            }
            bad.extend_from_slice(&body);
            match lie {
                "note" => writer.note(b"other", &mut frames).unwrap(),
                "cut" => frames.extend_from_slice(&bad[..30]),
                _ => frames.extend_from_slice(&bad),
            }
            if lie != "cut" {
                writer.append(b"behind", &mut frames).unwrap();
                writer.compressed(&text(1, 5000), &mut frames).unwrap();
            }
            let (all, end) = read(&frames, false, true);
            assert!(all == bytes, "{lie}");
            let kind = match lie {
                "cut" => io::ErrorKind::ConnectionReset,
                _ => io::ErrorKind::InvalidData,
            };
            assert_eq!(end.unwrap_err().kind(), kind, "{lie}");
        }
    }
}
