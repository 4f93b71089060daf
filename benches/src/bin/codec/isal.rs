//! ISA-L's deflate, if its library is on this machine: opened at run time, so that nothing needs it
//! to build.
//!
//! The offsets are those of `igzip_lib.h` of ISA-L 2.30, whose structures have not changed since
//! 2.24.

use std::ffi::c_int;

use libloading::Library;
use multifd_benches::PAGE_SIZE;

use crate::Result;
use crate::contender::Peer;

/// The functions, and the library that they are in.
struct Igzip {
    deflate_init: Function<()>,
    deflate: Function<c_int>,
    inflate_init: Function<()>,
    inflate: Function<c_int>,
    _library: Library,
}

type Function<R> = unsafe extern "C" fn(*mut u64) -> R;

impl Igzip {
    fn open() -> std::result::Result<Self, libloading::Error> {
        // SAFETY: ISA-L has no initialisers or finalisers.
        let library = unsafe { Library::new("libisal.so.2") }?;
        Ok(Self {
            deflate_init: function(&library, b"isal_deflate_init")?,
            deflate: function(&library, b"isal_deflate")?,
            inflate_init: function(&library, b"isal_inflate_init")?,
            inflate: function(&library, b"isal_inflate")?,
            _library: library,
        })
    }
}

fn function<R>(
    library: &Library,
    name: &[u8],
) -> std::result::Result<Function<R>, libloading::Error> {
    // SAFETY: by ISA-L's header all four take one pointer, and `R` is what this one gives; `Igzip`
    // keeps the library open.
    unsafe { library.get(name) }.map(|function| *function)
}

/// A zlib stream of level 1 for the channel, a call and a sync flush for each packet.
pub struct IsaL {
    igzip: Igzip,
    deflate: Structure,
    /// ISA-L writes into it through a pointer in `deflate`.
    _level_buffer: Vec<u64>,
    inflate: Structure,
}

impl IsaL {
    pub fn new() -> std::result::Result<Self, libloading::Error> {
        let igzip = Igzip::open()?;
        let mut deflate = Structure::new(DEFLATE_BYTES);
        let mut level_buffer = vec![0u64; LEVEL_1_BYTES / 8];
        // SAFETY: the structure has at least the size that the header gives it, and words are
        // aligned as it asks.
        unsafe { (igzip.deflate_init)(deflate.as_mut_ptr()) };
        deflate.put_u32(40, 1); // level
        deflate.put_u32(44, LEVEL_1_BYTES as u32); // level_buf_size
        deflate.put_u64(48, level_buffer.as_mut_ptr() as u64); // level_buf
        deflate.put_u16(58, SYNC_FLUSH); // flush
        deflate.put_u16(60, ZLIB); // gzip_flag
        let mut inflate = Structure::new(INFLATE_BYTES);
        // SAFETY: as above.
        unsafe { (igzip.inflate_init)(inflate.as_mut_ptr()) };
        inflate.put_u32(21172, u32::from(ZLIB)); // crc_flag
        Ok(Self {
            igzip,
            deflate,
            _level_buffer: level_buffer,
            inflate,
        })
    }
}

impl Peer for IsaL {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        // Incompressible pages grow by a few bytes for each of ISA-L's blocks.
        payload.resize(pages.len() + pages.len() / 16 + 1024, 0);
        let room = payload.len() as u32;
        self.deflate.put_u64(0, pages.as_ptr() as u64); // next_in
        self.deflate.put_u32(8, pages.len() as u32); // avail_in
        self.deflate.put_u64(16, payload.as_mut_ptr() as u64); // next_out
        self.deflate.put_u32(24, room); // avail_out
        // SAFETY: the structure was initialised in `new`, and its pointers are to buffers of the
        // lengths beside them.
        let status = unsafe { (self.igzip.deflate)(self.deflate.as_mut_ptr()) };
        if status != 0 || self.deflate.u32(8) != 0 {
            return Err(format!("ISA-L does not compress: {status}").into());
        }
        payload.truncate((room - self.deflate.u32(24)) as usize);
        Ok(())
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()> {
        self.inflate.put_u64(16, payload.as_ptr() as u64); // next_in
        self.inflate.put_u32(32, payload.len() as u32); // avail_in
        for page in pages.chunks_mut(PAGE_SIZE.bytes()) {
            self.inflate.put_u64(0, page.as_mut_ptr() as u64); // next_out
            self.inflate.put_u32(8, page.len() as u32); // avail_out
            // SAFETY: as in `encode`.
            let status = unsafe { (self.igzip.inflate)(self.inflate.as_mut_ptr()) };
            if status != 0 || self.inflate.u32(8) != 0 {
                return Err(format!("ISA-L does not read its own stream: {status}").into());
            }
        }
        Ok(())
    }
}

/// One of ISA-L's structures, as memory.
struct Structure(Vec<u64>);

impl Structure {
    fn new(bytes: usize) -> Self {
        Self(vec![0; bytes.div_ceil(8)])
    }

    fn as_mut_ptr(&mut self) -> *mut u64 {
        self.0.as_mut_ptr()
    }

    fn put(&mut self, offset: usize, value: u64, bits: u32) {
        let shift = offset % 8 * 8;
        let mask = (u64::MAX >> (64 - bits)) << shift;
        let word = &mut self.0[offset / 8];
        *word = *word & !mask | value << shift;
    }

    fn put_u16(&mut self, offset: usize, value: u16) {
        self.put(offset, value.into(), 16);
    }

    fn put_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, value.into(), 32);
    }

    fn put_u64(&mut self, offset: usize, value: u64) {
        self.put(offset, value, 64);
    }

    fn u32(&self, offset: usize) -> u32 {
        (self.0[offset / 8] >> (offset % 8 * 8)) as u32
    }
}

/// Room to spare over the 82 384 and 87 368 bytes of the structures in 2.30, for releases that add
/// to their ends.
const DEFLATE_BYTES: usize = 128 << 10;
const INFLATE_BYTES: usize = 128 << 10;

/// `ISAL_DEF_LVL1_DEFAULT`.
const LEVEL_1_BYTES: usize = 282_624;

const SYNC_FLUSH: u16 = 1;

/// `IGZIP_ZLIB` and `ISAL_ZLIB`: with zlib's header.
const ZLIB: u16 = 3;
