//! One libqpl job, its memory and its buffers.
//!
//! A device writes into the memory of a job on the hardware path: into the job itself and the
//! output buffer. So each job owns its buffers, and a job on the device has another type
//! ([`Flight`]) than one off it ([`Job`]): while the device may use the memory, there is no access
//! to a buffer, no second submission and no deallocation. A flight becomes a job again when libqpl
//! reports completion. If it never does, the flight is abandoned: its memory is leaked, because a
//! descriptor cannot be withdrawn from a device.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::Arc;

use qpl_sys::{
    CompressionLevel, DecompressEnd, Flags, Library, MiniBlockSize, NumaId, Operation, Path,
    StatisticsMode, Status,
};

use super::table::Table;
use crate::Huffman;

/// The operation on the input. Each run is a separate stream.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Deflate.
    Compress(Huffman),
    /// Deflate the body of a block of these codes, without its header. The job must not have
    /// written a header since it was fresh: on the hardware path that header would be written
    /// again.
    CompressBody(Arc<Table>),
    /// Inflate, to the end of the final block.
    Decompress,
}

/// A job that is not with a device.
#[derive(Debug)]
pub(super) struct Job {
    library: &'static Library,
    path: Path,
    /// The job as libqpl knows it. It holds addresses within itself. A vector's elements stay in
    /// place when the vector moves; this one never grows.
    memory: Vec<Line>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The table that `memory` refers to since the last run.
    table: Option<Arc<Table>>,
    /// A job may move between threads, but belongs to one thread at a time.
    not_sync: PhantomData<Cell<()>>,
}

/// The alignment of libqpl's descriptors.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "libqpl's, through a pointer")] [u8; 64]);

/// The result of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a> {
    pub(crate) input: &'a [u8],
    pub(crate) output: &'a [u8],
    /// Bytes of the input consumed. Only valid on the hardware path; the software path overstates
    /// it.
    pub(crate) used: usize,
    /// Unused bits at the end of the output's last byte. Only valid on the hardware path; the
    /// software path always reports 0.
    pub(super) spare_bits: u32,
}

impl Job {
    /// A fresh job of the hardware path or of the software path.
    ///
    /// # Errors
    /// libqpl's status. 500 and above explain why there is no hardware.
    pub(super) fn new(library: &'static Library, path: Path) -> Result<Self, Status> {
        let mut len_bytes = 0;
        // SAFETY: `len_bytes` is writable.
        let status = unsafe { (library.job_size)(path, &mut len_bytes) };
        if status != Status::OK {
            return Err(status);
        }
        let lines = (len_bytes as usize).div_ceil(size_of::<Line>());
        let mut job = Self {
            library,
            path,
            memory: vec![Line([0; 64]); lines],
            input: Vec::new(),
            output: Vec::new(),
            table: None,
            not_sync: PhantomData,
        };
        // A refused job is a job of the software path in too little memory. It is dropped here,
        // unused.
        match job.reset() {
            Status::OK => Ok(job),
            refused => Err(refused),
        }
    }

    /// Makes it a fresh job again. libqpl keeps some state of failures: for example the single page
    /// fault that it repairs in a job's life, and a busy queue in the middle of a dynamic
    /// compression.
    pub(super) fn reset(&mut self) -> Status {
        // SAFETY: the memory has the size that libqpl requires on this path, and no device has it.
        unsafe { (self.library.init_job)(self.path, self.pointer()) }
    }

    /// The input buffer of the next run.
    pub(super) fn input(&mut self) -> &mut Vec<u8> {
        &mut self.input
    }

    /// Does the work synchronously and returns its outcome. For the software path.
    pub(super) fn run(&mut self, work: &Work, room: usize) -> Status {
        debug_assert_eq!(self.path, Path::SOFTWARE);
        if let Err(refused) = self.prepare(work, room, NumaId::ANY) {
            return refused;
        }
        // SAFETY: `prepare` has set every field, and the buffers outlive the call. Nothing uses
        // them after it: the software path involves no device.
        unsafe { (self.library.execute_job)(self.pointer()) }
    }

    /// Submits the job to a device. For the hardware path.
    ///
    /// # Errors
    /// The job, which no device has, and libqpl's status.
    pub(super) fn submit(
        mut self,
        work: &Work,
        room: usize,
        numa: NumaId,
    ) -> Result<Flight, (Self, Status)> {
        debug_assert_eq!(self.path, Path::HARDWARE);
        if let Err(refused) = self.prepare(work, room, numa) {
            return Err((self, refused));
        }
        // SAFETY: `prepare` has set every field. From here on the device may read the input and
        // write the job and the output: after a submission the flight owns all of them, gives out
        // none of them, and frees them only when the device is done.
        match unsafe { (self.library.submit_job)(self.pointer()) } {
            Status::OK => Ok(Flight(ManuallyDrop::new(self))),
            refused => Err((self, refused)),
        }
    }

    /// The result of the last run, if its outcome was [`Status::OK`].
    pub(super) fn product(&self) -> Option<Product<'_>> {
        let job: *const qpl_sys::Job = self.memory.as_ptr().cast();
        // SAFETY: the memory holds a job since `new`. No device has it, and it is borrowed, so
        // nothing changes it.
        let job = unsafe { &*job };
        Some(Product {
            input: &self.input,
            output: self.output.get(..job.total_out as usize)?,
            used: job.total_in as usize,
            spare_bits: 8_u32.checked_sub(job.last_bit_offset)? % 8,
        })
    }

    /// The input of the last run.
    pub(super) fn last_input(&self) -> &[u8] {
        &self.input
    }

    /// Sets every field that libqpl reads, as it leaves them in any state. Touches the pages of the
    /// output: a device that meets a missing page gives up or waits for the kernel. (The input has
    /// just been written.)
    fn prepare(&mut self, work: &Work, room: usize, numa: NumaId) -> Result<(), Status> {
        let (Ok(available_in), Ok(available_out)) =
            (u32::try_from(self.input.len()), u32::try_from(room))
        else {
            return Err(Status::BUFFER_TOO_LARGE);
        };
        if self.output.len() < room {
            self.output.resize(room, 0);
        }
        let touched = self.output.iter_mut().take(room);
        touched
            .step_by(SMALLEST_PAGE_BYTES)
            .for_each(|byte| *byte = 0);
        // The buffer begins anywhere in a page, so its end may be on one more.
        if let Some(last) = room
            .checked_sub(1)
            .and_then(|last| self.output.get_mut(last))
        {
            *last = 0;
        }
        let (op, flags, table) = match work {
            Work::Compress(Huffman::Fixed) => (Operation::COMPRESS, Flags::OMIT_VERIFY, None),
            Work::Compress(Huffman::Dynamic) => (
                Operation::COMPRESS,
                Flags::OMIT_VERIFY | Flags::DYNAMIC_HUFFMAN,
                None,
            ),
            Work::CompressBody(table) => (
                Operation::COMPRESS,
                Flags::OMIT_VERIFY | Flags::CANNED_MODE,
                Some(Arc::clone(table)),
            ),
            Work::Decompress => (Operation::DECOMPRESS, Flags::NONE, None),
        };
        self.table = table;
        let table = self
            .table
            .as_ref()
            .map_or(ptr::null_mut(), |table| table.raw());
        let input = self.input.as_ptr().cast_mut();
        let output = self.output.as_mut_ptr();
        let job = self.pointer();
        // SAFETY: the memory holds a job since `new`, no device has it, and `self` is borrowed
        // mutably, so this is the only reference.
        let job = unsafe { &mut *job };
        job.op = op;
        job.flags = Flags::FIRST | Flags::LAST | flags;
        job.level = CompressionLevel::DEFAULT;
        job.statistics_mode = StatisticsMode::COMPRESSION;
        job.mini_block_size = MiniBlockSize::NONE;
        job.decomp_end_processing = DecompressEnd::STOP_AND_CHECK_FOR_BFINAL_EOB;
        job.ignore_start_bits = 0;
        job.ignore_end_bits = 0;
        job.huffman_table = table;
        job.dictionary = ptr::null_mut();
        job.idx_array = ptr::null_mut();
        job.idx_max_size = 0;
        job.numa_id = numa;
        // libqpl and the device only read the input.
        job.next_in_ptr = input;
        job.available_in = available_in;
        job.next_out_ptr = output;
        job.available_out = available_out;
        // Left from the last run, and not always set by the next.
        job.last_bit_offset = 0;
        Ok(())
    }

    fn pointer(&mut self) -> *mut qpl_sys::Job {
        self.memory.as_mut_ptr().cast()
    }
}

/// A job on a device.
///
/// Dropping it leaks it: use [`Flight::check`] to wait.
#[derive(Debug)]
pub(super) struct Flight(ManuallyDrop<Job>);

impl Flight {
    /// Returns the job and its outcome once it has one.
    ///
    /// # Errors
    /// The flight, while the device still has the job.
    pub(super) fn check(mut self) -> Result<(Job, Status), Self> {
        let pointer = self.0.pointer();
        // SAFETY: the memory holds a submitted job.
        match unsafe { (self.0.library.check_job)(pointer) } {
            Status::BEING_PROCESSED => Err(self),
            // Any other status means that the completion record has been read: the device is done
            // with the job. (A dynamic job whose second half found the queues full was not
            // submitted again.)
            outcome => Ok((ManuallyDrop::into_inner(self.0), outcome)),
        }
    }
}

/// The smallest memory page of libqpl's processors.
const SMALLEST_PAGE_BYTES: usize = 4096;
