//! Method `canned`, our own, between two ends of our own: every page by itself, in a code that both
//! ends already have.
//!
//! The layout of a payload, with big-endian numbers:
//!
//! | bytes | |
//! | --- | --- |
//! | 1 | version of this format: 1 |
//! | 1 | generation of the pages' code. A channel's first code has generation 0, each new one the next number, and 0 again after 255 |
//! | 2 | length of the code's description; 0 if the code is that of the packet before |
//! | that length | the code's description |
//! | the rest | a table of lengths and then the pages ([`multifd_wire::lengths`]) |
//!
//! The description is the header of a dynamic deflate block, the final one of its stream: from the
//! block's first bit to the last of the code lengths (RFC 1951, sections 3.2.3 and 3.2.7), the rest
//! of the last byte being 0. It describes all 286 literals and lengths and all 30 distances; every
//! symbol has a code of 1 to 15 bits, and both codes are complete. It never has more than 290
//! bytes. Like every header it has several valid forms with the same meaning.
//!
//! A page as long as the page size is uncompressed. A shorter one is the rest of the block after
//! that header: symbols, the end of the block, and zero bits to the end of the byte. So header and
//! page together, bit after bit, are a complete deflate stream. It fills its page exactly and ends
//! in the page's last byte. No distance in it exceeds 4096 or reaches back before the page, so that
//! an Intel IAA can read it; libqpl calls this *canned mode*.
//!
//! The first payload of a channel brings a code. Any payload may bring one, which holds for its
//! pages and until the next code; codes belong to one channel. Packets without normal pages have no
//! payload and change nothing.
//!
//! A receiver refuses another version, a generation out of order, a first payload without a code,
//! and a description that breaks the rules above. Pages have no checksum: a page with flipped bits
//! that still ends in the right place is accepted, as in QEMU's methods.
//!
//! The sender decides which code to use and when to change it ([`plan`]).

mod head;
mod plan;

pub(crate) use head::CannedFault;
use head::HeadFault;

use std::sync::Arc;

use multifd_wire::{Method, PageSize};
use page_deflate::{CodeLengths, Effort};

use super::PageReader;
use super::read::BodyCode;
use super::write::Heads;
use crate::channel::{Arrived, ReadPayload};
use crate::error::DecodeFault;
use crate::{Backend, DecodeError, EncodeError, Pages, PathCounts, Streams};
use head::Head;
use plan::Planner;

/// Selects the code of the pages, and sends new codes.
pub(crate) struct CodeHeads<Code> {
    planner: Planner,
    current: Option<Coded<Code>>,
}

impl<Code> CodeHeads<Code> {
    /// `effort` is that of the scouts, which should be the compressor's. `streams` is the number of
    /// parallel scouts.
    pub(crate) fn new(effort: Effort, streams: Streams) -> Self {
        Self {
            planner: Planner::new(effort, streams),
            current: None,
        }
    }
}

/// A code that the other end has.
struct Coded<C> {
    generation: u8,
    lengths: CodeLengths,
    code: Arc<C>,
}

impl<Code: Send + Sync> Heads<Code> for CodeHeads<Code> {
    fn write_head(
        &mut self,
        pages: &Pages<'_>,
        body: &dyn Fn(&CodeLengths) -> Result<Code, EncodeError>,
        out: &mut Vec<u8>,
    ) -> Result<Arc<Code>, EncodeError> {
        let plan = self.planner.plan(pages);
        let coded = match self.current.take() {
            Some(coded) if !plan.pays_over(&coded.lengths) => {
                head::write(coded.generation, &[], out);
                coded
            }
            before => {
                let generation = head::next(before.map(|coded| coded.generation));
                head::write(generation, plan.description, out);
                Coded {
                    generation,
                    code: Arc::new(body(&plan.lengths)?),
                    lengths: plan.lengths,
                }
            }
        };
        Ok(Arc::clone(&self.current.insert(coded).code))
    }
}

/// The receiving direction.
pub(crate) struct ReadPages {
    reader: PageReader,
    code: CodeAtHand,
}

/// The code that holds until the next one, and its generation.
struct CodeAtHand(Option<(u8, Arc<BodyCode>)>);

impl ReadPages {
    pub(crate) const fn new(reader: PageReader) -> Self {
        Self {
            reader,
            code: CodeAtHand(None),
        }
    }
}

impl CodeAtHand {
    /// The code of a payload's pages, which the payload may have brought.
    fn of(&mut self, head: &Head<'_>) -> Result<&Arc<BodyCode>, HeadFault> {
        let at_hand = self.0.take();
        let generation = at_hand.as_ref().map(|code| code.0);
        let expected = match head.description {
            [] => generation.ok_or(HeadFault::NoCode)?,
            _ => head::next(generation),
        };
        if head.generation != expected {
            return Err(HeadFault::Generation {
                found: head.generation,
                expected,
            });
        }
        let code = match at_hand {
            Some(code) if head.description.is_empty() => code,
            _ => {
                let lengths = CodeLengths::read_header(head.description);
                let lengths = lengths.map_err(HeadFault::Code)?;
                (expected, Arc::new(BodyCode::new(&lengths)))
            }
        };
        Ok(&self.0.insert(code).1)
    }
}

impl ReadPayload for ReadPages {
    const METHOD: Method = Method::Canned;

    fn read_payload(
        &mut self,
        packet: &mut Arrived,
        page_size: PageSize,
    ) -> Result<PathCounts, DecodeError> {
        let refused = |fault: HeadFault| DecodeError(DecodeFault::Canned(fault.into()));
        let (head, list) = Head::read(&packet.payload).map_err(refused)?;
        // The list is the rest after the head.
        let head_len = packet.payload.len().saturating_sub(list.len());
        let code = self.code.of(&head).map_err(refused)?;
        self.reader.read_bodies(packet, head_len, page_size, code)
    }

    fn backend(&self) -> Option<Backend> {
        self.reader.backend()
    }
}
