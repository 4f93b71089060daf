//! libqpl's functions for tests.

// Each test program has its own copy of this module and uses a part of it.
#![allow(dead_code)]

pub mod bench;

use std::ffi::c_void;
use std::io::Write as _;
use std::ptr;
use std::time::{Duration, Instant};

use qpl_sys::{
    Allocator, CompressionLevel, DecompressEnd, Flags, HuffmanTable, Job, Library, MiniBlockSize,
    NumaId, Operation, Path, StatisticsMode, Status,
};

/// Room for the compressed form of any page: a stored block and some more.
pub const PACKED_ROOM: usize = 8192;

/// The time limit for a device's answer on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

unsafe extern "C" {
    fn malloc(len_bytes: usize) -> *mut c_void;
    fn free(memory: *mut c_void);
}

/// C's allocator in the form for libqpl's tables.
pub const C_ALLOCATOR: Allocator = Allocator {
    allocate: malloc,
    free,
};

/// The library, or a report that `test` does not run.
pub fn library(test: &str) -> Option<&'static Library> {
    let error = match Library::open() {
        Ok(library) => return Some(library),
        Err(error) => error,
    };
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    let why = causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ");
    not_run(test, &why);
    None
}

/// Reports by name that a test does not run. In CI this is a failure.
pub fn not_run(test: &str, why: &str) {
    let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(!in_ci, "{test} must run in CI: {why}");
    // Bypasses the harness, which captures the print macros' output. One write keeps the line whole
    // among those of other tests.
    let line = format!("not run: {test}: {why}\n");
    let written = std::io::stderr().write_all(line.as_bytes());
    written.expect("standard error is open");
}

/// The outcome of `init_job` on the hardware path.
pub fn init_status(library: &'static Library) -> Status {
    HardwareJob::new(library).err().unwrap_or(Status::OK)
}

/// A job of the hardware path with its own input and output.
pub struct HardwareJob {
    library: &'static Library,
    memory: Vec<u64>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The device may be using the memory.
    in_flight: bool,
}

impl HardwareJob {
    pub fn new(library: &'static Library) -> Result<HardwareJob, Status> {
        HardwareJob::on(library, Path::HARDWARE)
    }

    pub fn on(library: &'static Library, path: Path) -> Result<HardwareJob, Status> {
        let mut len_bytes = 0;
        // SAFETY: `len_bytes` is writable.
        let status = unsafe { (library.job_size)(path, &mut len_bytes) };
        assert_eq!(status, Status::OK);
        let mut memory = vec![0_u64; (len_bytes as usize).div_ceil(8)];
        // SAFETY: the memory has the size that the library requires, and the vector never grows, so
        // it stays in place.
        let status = unsafe { (library.init_job)(path, memory.as_mut_ptr().cast()) };
        if status != Status::OK {
            return Err(status);
        }
        Ok(HardwareJob {
            library,
            memory,
            input: Vec::new(),
            output: Vec::new(),
            in_flight: false,
        })
    }

    /// Sets every field of a job over one page.
    pub fn prepare(&mut self, op: Operation, flags: Flags, input: &[u8], room: usize) -> &mut Job {
        assert!(!self.in_flight);
        self.input = input.to_vec();
        self.output = vec![0; room];
        let pointer: *mut Job = self.memory.as_mut_ptr().cast();
        // SAFETY: the memory holds a job since `new`, the device does not have it, and `self` is
        // borrowed as long as the result.
        let job = unsafe { &mut *pointer };
        job.op = op;
        job.flags = Flags::FIRST | Flags::LAST | flags;
        job.level = CompressionLevel::DEFAULT;
        job.statistics_mode = StatisticsMode::COMPRESSION;
        job.mini_block_size = MiniBlockSize::NONE;
        job.decomp_end_processing = DecompressEnd::STOP_AND_CHECK_FOR_BFINAL_EOB;
        job.ignore_start_bits = 0;
        job.ignore_end_bits = 0;
        job.huffman_table = ptr::null_mut();
        job.dictionary = ptr::null_mut();
        job.numa_id = NumaId::SOCKET;
        job.next_in_ptr = self.input.as_mut_ptr();
        job.available_in = self.input.len() as u32;
        job.next_out_ptr = self.output.as_mut_ptr();
        job.available_out = self.output.len() as u32;
        job
    }

    /// Compression of a page without verification.
    pub fn prepare_compress(&mut self, flags: Flags, page: &[u8]) -> &mut Job {
        self.prepare(
            Operation::COMPRESS,
            flags | Flags::OMIT_VERIFY,
            page,
            PACKED_ROOM,
        )
    }

    pub fn submit(&mut self) -> Status {
        assert!(!self.in_flight);
        // SAFETY: `prepare` has set every field; job and buffers stay in place, as these vectors do
        // not change until `in_flight` is false again.
        let status = unsafe { (self.library.submit_job)(self.pointer()) };
        self.in_flight = status == Status::OK;
        status
    }

    pub fn check(&mut self) -> Status {
        // SAFETY: the memory holds a job since `new`.
        let status = unsafe { (self.library.check_job)(self.pointer()) };
        self.in_flight = status == Status::BEING_PROCESSED;
        status
    }

    /// Checks until there is an outcome or the deadline has passed.
    pub fn outcome(&mut self, patience: Duration) -> Status {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.check();
            if status != Status::BEING_PROCESSED || Instant::now() > deadline {
                return status;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Submits, and waits for the outcome.
    pub fn run(&mut self) -> Status {
        match self.submit() {
            Status::OK => self.outcome(PATIENCE),
            refused => refused,
        }
    }

    pub fn execute(&mut self) -> Status {
        assert!(!self.in_flight);
        // SAFETY: as for `submit`; the library waits for the device.
        unsafe { (self.library.execute_job)(self.pointer()) }
    }

    /// Makes the same memory a fresh job.
    pub fn reinit(&mut self) {
        assert!(!self.in_flight);
        // SAFETY: the memory has a job's size since `new`, and the device does not have it.
        let status = unsafe { (self.library.init_job)(Path::HARDWARE, self.pointer()) };
        assert_eq!(status, Status::OK);
    }

    /// The job's fields, while the device does not have it.
    pub fn fields(&self) -> &Job {
        assert!(!self.in_flight);
        let pointer: *const Job = self.memory.as_ptr().cast();
        // SAFETY: the memory holds a job since `new`, and nothing is changing it.
        unsafe { &*pointer }
    }

    /// The output of the job.
    pub fn output(&self) -> &[u8] {
        &self.output[..self.fields().total_out as usize]
    }

    fn pointer(&mut self) -> *mut Job {
        self.memory.as_mut_ptr().cast()
    }
}

impl Drop for HardwareJob {
    fn drop(&mut self) {
        // A device that still has the job keeps its memory.
        if self.in_flight {
            std::mem::forget(std::mem::take(&mut self.memory));
            std::mem::forget(std::mem::take(&mut self.input));
            std::mem::forget(std::mem::take(&mut self.output));
        }
    }
}

/// A table, destroyed on drop.
pub struct Table {
    library: &'static Library,
    pub raw: HuffmanTable,
}

impl Table {
    /// A table for both directions, made from the statistics of `page`.
    pub fn of(library: &'static Library, path: Path, page: &[u8]) -> Result<Table, Status> {
        let mut histogram = qpl_sys::Histogram::default();
        let source = page.as_ptr().cast_mut();
        // SAFETY: `source` has the stated length and is only read; the histogram is live.
        let status = unsafe {
            (library.gather_deflate_statistics)(
                source,
                page.len() as u32,
                &mut histogram,
                CompressionLevel::DEFAULT,
                path,
            )
        };
        if status != Status::OK {
            return Err(status);
        }
        let mut raw = ptr::null_mut();
        let combined = qpl_sys::TableType::COMBINED;
        // SAFETY: the allocator is C's, and `raw` is writable.
        let status = unsafe {
            (library.deflate_huffman_table_create)(combined, path, C_ALLOCATOR, &mut raw)
        };
        assert_eq!(status, Status::OK);
        let table = Table { library, raw };
        // SAFETY: the table was just made; the histogram is live.
        let status = unsafe { (library.huffman_table_init_with_histogram)(raw, &histogram) };
        if status != Status::OK {
            return Err(status);
        }
        Ok(table)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: the table is live, and tests keep it longer than the jobs that use it.
        let status = unsafe { (self.library.huffman_table_destroy)(self.raw) };
        assert_eq!(status, Status::OK);
    }
}

/// Pages of several kinds: text, sparse, one byte, pointers, and an incompressible one.
pub fn pages() -> Vec<Vec<u8>> {
    const PAGE: usize = 4096;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64: any fixed sequence without matches is suitable.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let text: Vec<u8> = (0..)
        .flat_map(|n| format!("user{n:05}: field{}=", n * n % 97).into_bytes())
        .take(PAGE)
        .collect();
    let mut sparse = vec![0; PAGE];
    sparse
        .iter_mut()
        .step_by(97)
        .for_each(|byte| *byte = next() as u8);
    let pointers = (0..PAGE / 8)
        .flat_map(|_| (0x7f00_0000_0000 + next() % 65536 * 16).to_le_bytes())
        .collect();
    let random = (0..PAGE / 8).flat_map(|_| next().to_le_bytes()).collect();
    vec![
        text,
        sparse,
        vec![0; PAGE],
        vec![0xa5; PAGE],
        pointers,
        random,
    ]
}
