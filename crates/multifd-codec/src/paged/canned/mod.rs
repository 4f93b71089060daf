//! Method `canned`, our own, between two ends of our own: every page by itself, in a code that both
//! ends already have.
//!
//! `docs/canned.md` specifies it to the bit.
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
