//! The sending direction of one channel.

use std::collections::VecDeque;

use multifd_wire::{Method, PageSize};

use crate::auto::{Auto, Step};
use crate::channel::check_payload_len;
use crate::error::EncodeFault;
use crate::{Backend, EncodeError, PageBuffer, Pages, PathCounts, Settings, Unsupported, choose};

/// Encodes packets of pages as payloads: the sending direction of one channel.
///
/// Packets are pushed and payloads popped, both in the channel's order. `T` is the caller's tag for
/// a packet; it comes back with the payload.
///
/// With several processors, pushed packets are compressed in parallel while the caller reads the
/// next packet or writes a payload. With one, a packet is compressed when its payload is popped.
/// The payloads are the same.
///
/// ```
/// use multifd_codec::{Encoder, Settings};
/// use multifd_wire::{Method, PageSize};
///
/// let mut encoder = Encoder::new(Method::Zlib, &Settings::default())?;
/// let mut arriving = (1..=3).map(|content| (content, vec![content; 4096].into()));
/// let mut payload = Vec::new();
/// loop {
///     while encoder.room() > 0
///         && let Some((number, pages)) = arriving.next()
///     {
///         encoder.push(pages, PageSize::K4, number);
///     }
///     let Some((_pages, number)) = encoder.pop(&mut payload)? else {
///         break;
///     };
///     println!("packet {number} has a payload of {} bytes", payload.len());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Encoder<T = ()> {
    method: Method,
    machine: Machine,
    backend: Backend,
    counts: PathCounts,
    /// The caller's tags of the packets in work, the oldest first.
    tags: VecDeque<T>,
    /// Why the packet after those in work cannot be encoded.
    refused: Option<EncodeError>,
    /// False after the first error: the stream has a hole, and nothing can be appended.
    is_whole: bool,
    /// A copy of borrowed pages.
    copy: PageBuffer,
}

/// How a method makes payloads.
pub(crate) enum Machine {
    /// One at a time, on the caller's thread.
    OneByOne {
        stream: Box<dyn WritePayload>,
        /// The pushed packet.
        pushed: Option<(PageBuffer, PageSize)>,
    },
    /// Several in parallel, with helpers.
    Together(Box<dyn WriteTogether>),
}

/// Makes a payload by one method. There is at least one page, and `out` is empty.
pub(crate) trait WritePayload: Send {
    /// Also returns the counts of pages by backend.
    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError>;

    /// See [`Encoder::set_step`]. For streams that have steps.
    fn set_step(&mut self, _: usize) {}

    /// See [`Encoder::backend`]. For streams whose backend may change.
    fn backend(&self) -> Option<Backend> {
        None
    }
}

/// A method with several packets in work. A packet without pages has no payload.
pub(crate) trait WriteTogether: Send {
    /// The number of packets that may be pushed now.
    fn room(&self) -> usize;

    /// Whether one more packet fits, regardless of [`Self::room`].
    fn has_place(&self) -> bool;

    /// Starts a packet.
    fn push(&mut self, pages: PageBuffer, page_size: PageSize) -> Result<(), EncodeError>;

    /// Finishes the oldest packet. Also returns the counts of its pages by backend.
    fn pop(
        &mut self,
        payload: &mut Vec<u8>,
    ) -> Result<Option<(PageBuffer, PathCounts)>, EncodeError>;
}

/// A packet that could not be encoded.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failed<T> {
    /// The packet's tag.
    pub tag: T,
    /// The error.
    pub error: EncodeError,
}

impl<T> From<Failed<T>> for EncodeError {
    fn from(failed: Failed<T>) -> Self {
        failed.error
    }
}

impl<T> std::fmt::Display for Failed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl<T: std::fmt::Debug> std::error::Error for Failed<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl<T> Encoder<T> {
    /// Makes an encoder for one channel: see [`encoder`](crate::encoder).
    ///
    /// # Errors
    ///
    /// [`Unsupported`] if this build cannot write the method, or not with this accelerator.
    pub fn new(method: Method, settings: &Settings) -> Result<Self, Unsupported> {
        let (machine, backend) = choose::machine(method, settings)?;
        Ok(Self::of(method, machine, backend))
    }

    /// Makes an encoder whose packets are encoded with any of the steps of `auto`.
    ///
    /// # Errors
    ///
    /// [`Unsupported`] if there is no memory for it.
    pub fn with_steps(auto: &Auto, settings: &Settings) -> Result<Self, Unsupported> {
        let (machine, backend) = choose::stepped_machine(auto.method(), settings)?;
        Ok(Self::of(auto.method(), machine, backend))
    }

    /// Encodes packets that are popped from now on with `step`, which must be one of the method's.
    /// Encoders that were not made [with steps](Self::with_steps) have none, and ignore it.
    pub fn set_step(&mut self, step: Step) {
        match &mut self.machine {
            Machine::OneByOne { stream, .. } if step.method() == self.method => {
                stream.set_step(step.index());
            }
            Machine::OneByOne { .. } | Machine::Together(_) => {}
        }
    }

    fn of(method: Method, machine: Machine, backend: Backend) -> Self {
        Self {
            method,
            machine,
            backend,
            counts: PathCounts::default(),
            tags: VecDeque::new(),
            refused: None,
            is_whole: true,
            copy: PageBuffer::default(),
        }
    }

    /// The method of the payloads.
    #[must_use]
    pub const fn method(&self) -> Method {
        self.method
    }

    /// The number of packets that may be pushed now. It is 0 while the oldest payload is complete,
    /// so that this payload need not wait for packets that are still arriving, and after an error.
    #[must_use]
    pub fn room(&self) -> usize {
        match &self.machine {
            _ if !self.is_whole || self.refused.is_some() => 0,
            Machine::OneByOne { pushed, .. } => usize::from(pushed.is_none()),
            Machine::Together(packets) => packets.room(),
        }
    }

    /// Takes the pages of the channel's next packet: from none to a full packet. There must be
    /// [room](Self::room). If the packet cannot be encoded, [`Self::pop`] returns the error in its
    /// turn.
    pub fn push(&mut self, pages: PageBuffer, page_size: PageSize, tag: T) {
        self.tags.push_back(tag);
        if !self.is_whole || self.refused.is_some() {
            return;
        }
        // Set again once this packet succeeds.
        self.is_whole = false;
        self.refused = self.machine.push(pages, page_size, self.method).err();
        self.is_whole = true;
    }

    /// Makes the payload of the oldest packet, and returns the packet's pages. The calling thread
    /// works until the payload is complete. Returns `None` if there is no packet.
    ///
    /// Clears `payload` and writes the payload to it, at most
    /// [`MAX_PAYLOAD_BYTES`](crate::MAX_PAYLOAD_BYTES). The payload of a packet without pages is
    /// empty and leaves the stream unchanged.
    ///
    /// # Errors
    ///
    /// Why this packet cannot be encoded: see [`EncodeError`]. After any error the encoder refuses
    /// every packet, and the content of `payload` is meaningless.
    pub fn pop(&mut self, payload: &mut Vec<u8>) -> Result<Option<(PageBuffer, T)>, Failed<T>> {
        let Some(tag) = self.tags.pop_front() else {
            return Ok(None);
        };
        match self.pop_payload(payload) {
            Ok(pages) => Ok(Some((pages, tag))),
            Err(error) => Err(Failed { tag, error }),
        }
    }

    fn pop_payload(&mut self, payload: &mut Vec<u8>) -> Result<PageBuffer, EncodeError> {
        payload.clear();
        self.begin()?;
        let method = self.method;
        let Some((pages, counts)) = self.machine.pop(payload)? else {
            // All packets before it were popped.
            let refused = self.refused.take();
            return Err(refused.unwrap_or(EncodeError(EncodeFault::Poisoned { method })));
        };
        self.end(payload, counts)?;
        Ok(pages)
    }

    /// Marks the stream broken until the current packet succeeds.
    fn begin(&mut self) -> Result<(), EncodeError> {
        let method = self.method;
        let was_whole = std::mem::replace(&mut self.is_whole, false);
        was_whole
            .then_some(())
            .ok_or(EncodeError(EncodeFault::Poisoned { method }))
    }

    fn end(&mut self, payload: &[u8], counts: PathCounts) -> Result<(), EncodeError> {
        check_payload_len(payload.len())?;
        self.counts += counts;
        self.is_whole = true;
        Ok(())
    }

    /// The current backend, and why no better one is in use. An accelerator may have been given up
    /// meanwhile.
    #[must_use]
    pub fn backend(&self) -> Backend {
        let current = match &self.machine {
            Machine::OneByOne { stream, .. } => stream.backend(),
            Machine::Together(_) => None,
        };
        current.unwrap_or_else(|| self.backend.clone())
    }

    /// The pages of all successful packets by backend.
    #[must_use]
    pub const fn counts(&self) -> PathCounts {
        self.counts
    }
}

impl Encoder {
    /// Makes the payload of the channel's next packet from its normal pages, anywhere in memory: a
    /// push and a pop. There must be no packet in work.
    ///
    /// Clears `out` and writes the payload to it, as in [`Self::pop`].
    ///
    /// # Errors
    ///
    /// The same as for [`Self::pop`].
    pub fn encode(&mut self, pages: &Pages<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.clear();
        self.begin()?;
        if !self.tags.is_empty() {
            return Err(no_room(self.method));
        }
        let counts = match &mut self.machine {
            // A packet without normal pages has no payload, and leaves the compression stream
            // unchanged.
            _ if pages.is_empty() => PathCounts::default(),
            Machine::OneByOne { stream, .. } => stream.write_payload(pages, out)?,
            Machine::Together(packets) => {
                self.copy.copy_from(pages);
                packets.push(std::mem::take(&mut self.copy), pages.page_size())?;
                let (copy, counts) = packets
                    .pop(out)?
                    .ok_or(EncodeError(EncodeFault::Incomplete))?;
                self.copy = copy;
                counts
            }
        };
        self.end(out, counts)
    }
}

impl Machine {
    pub(crate) fn one_by_one(stream: impl WritePayload + 'static) -> Self {
        Self::OneByOne {
            stream: Box::new(stream),
            pushed: None,
        }
    }

    pub(crate) fn together(packets: impl WriteTogether + 'static) -> Self {
        Self::Together(Box::new(packets))
    }

    fn push(
        &mut self,
        pages: PageBuffer,
        page_size: PageSize,
        method: Method,
    ) -> Result<(), EncodeError> {
        Pages::private(pages.as_ref(), page_size).map_err(EncodeFault::Buffer)?;
        match self {
            Self::OneByOne { pushed, .. } if pushed.is_none() => {
                *pushed = Some((pages, page_size));
                Ok(())
            }
            Self::Together(packets) if packets.has_place() => packets.push(pages, page_size),
            Self::OneByOne { .. } | Self::Together(_) => Err(no_room(method)),
        }
    }

    fn pop(
        &mut self,
        payload: &mut Vec<u8>,
    ) -> Result<Option<(PageBuffer, PathCounts)>, EncodeError> {
        let (stream, pushed) = match self {
            Self::OneByOne { stream, pushed } => (stream, pushed),
            Self::Together(packets) => return packets.pop(payload),
        };
        let Some((bytes, page_size)) = pushed.take() else {
            return Ok(None);
        };
        let pages = Pages::private(bytes.as_ref(), page_size).map_err(EncodeFault::Buffer)?;
        let counts = if pages.is_empty() {
            PathCounts::default()
        } else {
            stream.write_payload(&pages, payload)?
        };
        Ok(Some((bytes, counts)))
    }
}

const fn no_room(method: Method) -> EncodeError {
    EncodeError(EncodeFault::NoRoom { method })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackendKind, MAX_PAYLOAD_BYTES};

    /// Writes payloads of the given lengths, one after the other; a length of 0 is a failure.
    struct Lengths(Vec<usize>);

    impl WritePayload for Lengths {
        fn write_payload(
            &mut self,
            pages: &Pages<'_>,
            out: &mut Vec<u8>,
        ) -> Result<PathCounts, EncodeError> {
            match self.0.remove(0) {
                0 => Err(EncodeError(EncodeFault::Library {
                    method: Method::Zlib,
                    source: "out of order".into(),
                })),
                len => {
                    out.resize(len, 1);
                    Ok(PathCounts::software(pages.len()))
                }
            }
        }
    }

    fn encoder<T>(lengths: &[usize]) -> Encoder<T> {
        let machine = Machine::one_by_one(Lengths(lengths.to_vec()));
        Encoder::of(Method::Zlib, machine, Backend::new(BackendKind::Plain))
    }

    fn encode(encoder: &mut Encoder) -> Result<usize, EncodeError> {
        let mut out = vec![0; 10];
        encoder.encode(&Pages::private(&[0; 4096], PageSize::K4).unwrap(), &mut out)?;
        Ok(out.len())
    }

    fn push<T>(encoder: &mut Encoder<T>, tag: T) {
        encoder.push(vec![0; 4096].into(), PageSize::K4, tag);
    }

    #[test]
    fn a_payload_too_large_for_a_stock_receiver_never_gets_out() {
        let mut encoder = encoder(&[7, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 7]);
        assert_eq!(encode(&mut encoder).unwrap(), 7);
        assert_eq!(encode(&mut encoder).unwrap(), MAX_PAYLOAD_BYTES);
        let error = encode(&mut encoder).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a payload of 1048577 bytes or more, but a stock receiver takes 1048576"
        );
        assert!(matches!(
            encode(&mut encoder),
            Err(EncodeError(EncodeFault::Poisoned { .. }))
        ));
    }

    #[test]
    fn an_encoder_that_failed_writes_nothing_more() {
        let mut encoder = encoder(&[7, 0, 7, 7]);
        assert_eq!(encode(&mut encoder).unwrap(), 7);
        assert!(matches!(
            encode(&mut encoder),
            Err(EncodeError(EncodeFault::Library { .. }))
        ));
        assert_eq!(encoder.counts(), PathCounts::software(1));
        for _ in 0..2 {
            assert!(matches!(
                encode(&mut encoder),
                Err(EncodeError(EncodeFault::Poisoned { .. }))
            ));
        }
        assert_eq!(encoder.room(), 0);
    }

    /// A packet pushed without room fails in its turn, as do those after it.
    #[test]
    fn a_packet_too_many_fails_behind_the_others() {
        let mut encoder = encoder(&[7, 7, 7]);
        let mut payload = Vec::new();
        assert!(encoder.pop(&mut payload).unwrap().is_none());
        assert_eq!(encoder.room(), 1);
        push(&mut encoder, "first");
        assert_eq!(encoder.room(), 0);
        push(&mut encoder, "second");
        push(&mut encoder, "third");
        assert_eq!(encoder.pop(&mut payload).unwrap().unwrap().1, "first");
        assert_eq!(payload.len(), 7);
        let failed = encoder.pop(&mut payload).unwrap_err();
        assert_eq!(failed.tag, "second");
        assert!(matches!(
            failed.error,
            EncodeError(EncodeFault::NoRoom { .. })
        ));
        let failed = encoder.pop(&mut payload).unwrap_err();
        assert_eq!(failed.tag, "third");
        assert!(matches!(
            failed.error,
            EncodeError(EncodeFault::Poisoned { .. })
        ));
        assert!(encoder.pop(&mut payload).unwrap().is_none());
        push(&mut encoder, "fourth");
        let failed = encoder.pop(&mut payload).unwrap_err();
        assert!(matches!(
            failed.error,
            EncodeError(EncodeFault::Poisoned { .. })
        ));
    }

    #[test]
    fn a_packet_in_work_comes_before_one_that_is_lent() {
        let mut encoder = encoder(&[7, 7]);
        push(&mut encoder, ());
        let outcome = encode(&mut encoder);
        assert!(matches!(
            outcome,
            Err(EncodeError(EncodeFault::NoRoom { .. }))
        ));
    }
}
