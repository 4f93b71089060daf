//! Method `none`: the pages, back to back, in the order of their offsets.

use multifd_wire::{Method, PageSize};

use crate::channel::{Arrived, ReadPayload};
use crate::encoder::WritePayload;
use crate::error::DecodeFault;
use crate::{DecodeError, EncodeError, Pages, PathCounts};

/// Both directions; stateless.
pub(crate) struct Raw;

impl WritePayload for Raw {
    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        pages.append_to(out);
        Ok(PathCounts::raw(pages.len()))
    }
}

impl ReadPayload for Raw {
    const METHOD: Method = Method::None;

    fn read_payload(
        &mut self,
        packet: &mut Arrived,
        page_size: PageSize,
    ) -> Result<PathCounts, DecodeError> {
        let (payload, pages) = (&*packet.payload, packet.pages.as_mut());
        if payload.len() != pages.len() {
            return Err(DecodeError(DecodeFault::Length {
                found: payload.len(),
                allowed: pages.len(),
            }));
        }
        pages.copy_from_slice(payload);
        Ok(PathCounts::raw(pages.len() / page_size.bytes()))
    }
}
