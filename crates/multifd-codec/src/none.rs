//! Method `none`: the pages themselves, back to back, in the order of their offsets.

use multifd_wire::{Method, PageSize};

use crate::channel::{ReadPayload, WritePayload};
use crate::{DecodeError, EncodeError, Pages, PathCounts};

/// Both directions: there is no state.
pub(crate) struct Raw;

impl WritePayload for Raw {
    const METHOD: Method = Method::None;

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
        payload: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<PathCounts, DecodeError> {
        if payload.len() != pages.len() {
            return Err(DecodeError::Length {
                found: payload.len(),
                allowed: pages.len(),
            });
        }
        pages.copy_from_slice(payload);
        Ok(PathCounts::raw(pages.len() / page_size.bytes()))
    }
}
