//! Parses a stream of variable layout, in any cut.
//!
//! A machine is a step function over a [`Reader`]. A step takes the bytes it needs and returns an
//! event or none. If the available bytes do not suffice it stops without a change, and is repeated
//! with more. [`Carry`] keeps the few bytes that one call leaves for the next, so that every step
//! sees its bytes in one piece.

use alloc::vec::Vec;

use crate::fault::Fault;

/// Takes numbers and bytes from the front of the available bytes, and records how far it looked.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
}

/// The available bytes do not suffice: at least `needed` bytes are required, counted from the
/// reader's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct More {
    pub(crate) needed: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            len: bytes.len(),
        }
    }

    /// Bytes taken so far.
    pub(crate) fn taken(&self) -> usize {
        self.len.saturating_sub(self.rest.len())
    }

    /// The bytes not taken.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// A lookahead: taking from it leaves this reader in place.
    pub(crate) fn ahead(&self) -> Reader<'a> {
        Reader {
            rest: self.rest,
            len: self.len,
        }
    }

    /// Takes the next `len` bytes. If there are fewer, it takes nothing.
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], More> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(self.more(len))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes as many of the next `len` bytes as available, but at least one.
    pub(crate) fn take_some(&mut self, len: u64) -> Result<&'a [u8], More> {
        if self.rest.is_empty() {
            return Err(self.more(1));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let (taken, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, &[]));
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, More> {
        self.chunk().map(u8::from_be_bytes)
    }

    pub(crate) fn be16(&mut self) -> Result<u16, More> {
        self.chunk().map(u16::from_be_bytes)
    }

    pub(crate) fn be32(&mut self) -> Result<u32, More> {
        self.chunk().map(u32::from_be_bytes)
    }

    pub(crate) fn be64(&mut self) -> Result<u64, More> {
        self.chunk().map(u64::from_be_bytes)
    }

    pub(crate) fn chunk<const LEN: usize>(&mut self) -> Result<[u8; LEN], More> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(self.more(LEN))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn more(&self, len: usize) -> More {
        More {
            needed: self.taken().saturating_add(len),
        }
    }
}

/// Why a step is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    More(More),
    Fault(Fault),
}

impl From<More> for Stop {
    fn from(more: More) -> Self {
        Self::More(more)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// The bytes of a step from earlier calls: always fewer than the step needs.
#[derive(Debug, Default)]
pub(crate) struct Carry {
    bytes: Vec<u8>,
    /// The number of bytes that the step needs before another try.
    needed: usize,
}

impl Carry {
    /// Runs steps over `input`, up to the first event. Returns `None` if all of `input` is used and
    /// more is needed.
    pub(crate) fn drive<T>(
        &mut self,
        input: &mut &[u8],
        mut step: impl FnMut(&mut Reader<'_>) -> Result<Option<T>, Stop>,
    ) -> Result<Option<T>, Fault> {
        loop {
            let direct = self.bytes.is_empty();
            if !direct {
                self.top_up(input);
            }
            let mut reader = Reader::new(if direct { input } else { &self.bytes });
            match step(&mut reader) {
                Ok(event) => {
                    let taken = reader.taken();
                    if direct {
                        *input = input.get(taken..).unwrap_or_default();
                    } else {
                        self.bytes.drain(..taken);
                    }
                    self.needed = 0;
                    if event.is_some() {
                        return Ok(event);
                    }
                }
                Err(Stop::Fault(fault)) => return Err(fault),
                Err(Stop::More(More { needed })) => {
                    self.needed = needed;
                    if direct {
                        self.top_up(input);
                    }
                    if input.is_empty() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// The bytes left over.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The least number of bytes missing for the next step; at least one.
    pub(crate) fn missing(&self) -> usize {
        self.needed.saturating_sub(self.bytes.len()).max(1)
    }

    fn top_up(&mut self, input: &mut &[u8]) {
        let wanted = self.needed.saturating_sub(self.bytes.len());
        let (taken, rest) = input.split_at_checked(wanted).unwrap_or((input, &[]));
        self.bytes.extend_from_slice(taken);
        *input = rest;
    }
}
