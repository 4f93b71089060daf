//! The C zlib, driven as a multifd peer drives it: one stream per channel, fed page by page.

use libz_sys::{
    Z_BUF_ERROR, Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_NO_FLUSH, Z_OK, Z_STREAM_END, Z_SYNC_FLUSH,
    deflate, deflateEnd, deflateInit2_, deflateReset, inflate, inflateEnd, inflateInit2_,
    inflateReset, z_stream,
};
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::mem::size_of;
use std::ptr::null_mut;

/// zlib compares the first digit with its own.
const VERSION: &CStr = c"1";

/// One deflate stream.
pub struct Deflate {
    // zlib's state points back at the stream, so the stream must not move.
    stream: Box<z_stream>,
}

impl Deflate {
    /// `window_bits` as zlib counts them: 9 to 15, negative for no header.
    pub fn new(level: c_int, window_bits: c_int) -> Self {
        let mut stream = empty_stream();
        // SAFETY: the stream is initialised, with null allocators and no buffers, as zlib asks.
        let status = unsafe {
            deflateInit2_(
                &mut *stream,
                level,
                Z_DEFLATED,
                window_bits,
                8,
                Z_DEFAULT_STRATEGY,
                VERSION.as_ptr(),
                size_of::<z_stream>() as c_int,
            )
        };
        assert_eq!(status, Z_OK);
        Self { stream }
    }

    /// Appends one packet: every page in a call of its own, the last one with a sync flush.
    pub fn packet(&mut self, pages: &[u8], page_bytes: usize, out: &mut Vec<u8>) {
        let count = pages.len() / page_bytes;
        for (i, page) in pages.chunks(page_bytes).enumerate() {
            let flush = if i + 1 == count {
                Z_SYNC_FLUSH
            } else {
                Z_NO_FLUSH
            };
            assert_eq!(self.call(page, flush, out), Z_OK);
        }
    }

    /// Appends a complete stream of its own and starts afresh.
    pub fn whole(&mut self, input: &[u8], out: &mut Vec<u8>) {
        assert_eq!(self.call(input, libz_sys::Z_FINISH, out), Z_STREAM_END);
        // SAFETY: the stream was initialised in `new`.
        assert_eq!(unsafe { deflateReset(&mut *self.stream) }, Z_OK);
    }

    /// Feeds all of `input` in one call with any kind of flush, and appends what comes out; zlib's
    /// status.
    pub fn call(&mut self, input: &[u8], flush: c_int, out: &mut Vec<u8>) -> c_int {
        self.stream.next_in = input.as_ptr().cast_mut();
        self.stream.avail_in = input.len() as u32;
        loop {
            out.reserve(input.len() + 4096);
            let spare = out.spare_capacity_mut();
            let room = spare.len();
            self.stream.next_out = spare.as_mut_ptr().cast();
            self.stream.avail_out = room as u32;
            // SAFETY: input and output ranges are the slices above, alive during the call.
            let status = unsafe { deflate(&mut *self.stream, flush) };
            let written = room - self.stream.avail_out as usize;
            // SAFETY: zlib has initialised that many bytes of the spare capacity.
            unsafe { out.set_len(out.len() + written) };
            if status != Z_OK || self.stream.avail_out > 0 {
                assert_eq!(self.stream.avail_in, 0);
                return status;
            }
        }
    }
}

impl Drop for Deflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised in `new`.
        unsafe { deflateEnd(&mut *self.stream) };
    }
}

/// One inflate stream.
pub struct Inflate {
    stream: Box<z_stream>,
}

impl Inflate {
    /// `window_bits` as zlib counts them: 8 to 15, negative for no header.
    pub fn new(window_bits: c_int) -> Self {
        let mut stream = empty_stream();
        // SAFETY: as in `Deflate::new`.
        let status = unsafe {
            inflateInit2_(
                &mut *stream,
                window_bits,
                VERSION.as_ptr(),
                size_of::<z_stream>() as c_int,
            )
        };
        assert_eq!(status, Z_OK);
        Self { stream }
    }

    /// Decodes one packet page by page; false unless every page is filled, and all of the payload
    /// used.
    pub fn packet(&mut self, payload: &[u8], page_bytes: usize, pages: &mut [u8]) -> bool {
        self.stock_packet(payload, page_bytes, pages) == Some(0)
    }

    /// Decodes one packet as a stock receiver does: page by page, each with room for itself only.
    /// The bytes of payload that it would throw away, or nothing if it would fail.
    pub fn stock_packet(
        &mut self,
        payload: &[u8],
        page_bytes: usize,
        pages: &mut [u8],
    ) -> Option<usize> {
        let count = pages.len() / page_bytes;
        self.stream.next_in = payload.as_ptr().cast_mut();
        self.stream.avail_in = payload.len() as u32;
        for (i, page) in pages.chunks_mut(page_bytes).enumerate() {
            let flush = if i + 1 == count {
                Z_SYNC_FLUSH
            } else {
                Z_NO_FLUSH
            };
            self.stream.next_out = page.as_mut_ptr();
            self.stream.avail_out = page.len() as u32;
            loop {
                // SAFETY: input and output ranges are the slices above, alive during the call.
                let status = unsafe { inflate(&mut *self.stream, flush) };
                if status != Z_OK {
                    return None;
                }
                if self.stream.avail_out == 0 {
                    break;
                }
                if self.stream.avail_in == 0 {
                    return None;
                }
            }
        }
        Some(self.stream.avail_in as usize)
    }

    /// Decodes one complete stream; the output, at most `limit` bytes, and whether the stream ended
    /// well in the last byte of the input.
    pub fn whole(&mut self, input: &[u8], limit: usize) -> (Vec<u8>, bool) {
        let mut out = vec![0; limit];
        self.stream.next_in = input.as_ptr().cast_mut();
        self.stream.avail_in = input.len() as u32;
        self.stream.next_out = out.as_mut_ptr();
        self.stream.avail_out = limit as u32;
        // SAFETY: as in `packet`.
        let mut status = unsafe { inflate(&mut *self.stream, Z_NO_FLUSH) };
        if status == Z_OK || status == Z_BUF_ERROR {
            // With the output full, the end of the stream can take one more call.
            // SAFETY: as in `packet`.
            status = unsafe { inflate(&mut *self.stream, Z_NO_FLUSH) };
        }
        out.truncate(limit - self.stream.avail_out as usize);
        let ended = status == Z_STREAM_END && self.stream.avail_in == 0;
        // SAFETY: the stream was initialised in `new`.
        assert_eq!(unsafe { inflateReset(&mut *self.stream) }, Z_OK);
        (out, ended)
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised in `new`.
        unsafe { inflateEnd(&mut *self.stream) };
    }
}

fn empty_stream() -> Box<z_stream> {
    Box::new(z_stream {
        next_in: null_mut(),
        avail_in: 0,
        total_in: 0,
        next_out: null_mut(),
        avail_out: 0,
        total_out: 0,
        msg: null_mut(),
        state: null_mut(),
        zalloc: allocate,
        zfree: release,
        opaque: null_mut(),
        data_type: 0,
        adler: 0,
        reserved: 0,
    })
}

// The crate's type has no room for zlib's own default, which is a null function.
unsafe extern "C" {
    fn calloc(items: usize, size: usize) -> *mut c_void;
    fn free(address: *mut c_void);
}

unsafe extern "C" fn allocate(_: *mut c_void, items: c_uint, size: c_uint) -> *mut c_void {
    // SAFETY: calloc takes any two sizes.
    unsafe { calloc(items as usize, size as usize) }
}

unsafe extern "C" fn release(_: *mut c_void, address: *mut c_void) {
    // SAFETY: zlib gives back what `allocate` gave it.
    unsafe { free(address) };
}
