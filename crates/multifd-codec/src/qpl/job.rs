//! One libqpl job, its memory and its buffers.
//!
//! A job on the hardware path is memory into which a device writes: the job's own, and the output
//! buffer. So each job owns its buffers, and a job which the device has is another type
//! ([`Flight`]) than one which it has not ([`Job`]): there is no way to a buffer, to a second
//! submission or to the end of the memory's life while the device may use it. A flight becomes a
//! job again when libqpl says so. One that does not is abandoned: its memory is given up for good,
//! because nothing takes a descriptor back from a device.
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

/// What a job is to do with its input. Each run is a stream of its own.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Deflate.
    Compress(Huffman),
    /// Deflate the body of a block of these codes, without its header. Not in a job which has
    /// written a header since it was fresh: on the hardware path that header would come out again.
    CompressBody(Arc<Table>),
    /// Inflate, to the end of the final block.
    Decompress,
}

/// A job which no device has.
#[derive(Debug)]
pub(super) struct Job {
    library: &'static Library,
    path: Path,
    /// The job as libqpl knows it. It holds addresses within itself, and a vector's elements stay
    /// where they are when the vector moves; this one never grows.
    memory: Vec<Line>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// What `memory` refers to in the run before.
    table: Option<Arc<Table>>,
    /// A job may be moved from one thread to another, but is of one thread at a time.
    not_sync: PhantomData<Cell<()>>,
}

/// What libqpl aligns its descriptors to.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "libqpl's, through a pointer")] [u8; 64]);

/// What a job has made of its input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a> {
    pub(crate) input: &'a [u8],
    pub(crate) output: &'a [u8],
    /// Bytes of the input that were used. Of the hardware path; the software path exaggerates.
    pub(crate) used: usize,
    /// Bits at the end of the output's last byte which do not belong to the stream. Of the hardware
    /// path; the software path always says 0.
    pub(super) spare_bits: u32,
}

impl Job {
    /// A fresh job of the hardware path or of the software path.
    ///
    /// # Errors
    /// libqpl's status. 500 and above say why there is no hardware.
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
        // A job that was refused is a job of the software path in too little memory. It is dropped
        // here, unused.
        match job.reset() {
            Status::OK => Ok(job),
            refused => Err(refused),
        }
    }

    /// Makes it a fresh job again. libqpl keeps parts of what has failed, such as the one page
    /// fault that it repairs in a job's life and the busy queue in the middle of a dynamic
    /// compression.
    pub(super) fn reset(&mut self) -> Status {
        // SAFETY: the memory is of the size that libqpl asks for on this path, and no device has
        // it.
        unsafe { (self.library.init_job)(self.path, self.pointer()) }
    }

    /// The input of the next run, to be filled.
    pub(super) fn input(&mut self) -> &mut Vec<u8> {
        &mut self.input
    }

    /// Does the work here and now, and returns its outcome. For the software path.
    pub(super) fn run(&mut self, work: &Work, room: usize) -> Status {
        debug_assert_eq!(self.path, Path::SOFTWARE);
        if let Err(refused) = self.prepare(work, room, NumaId::ANY) {
            return refused;
        }
        // SAFETY: `prepare` has set every field, and the buffers outlive the call, after which
        // nobody uses them: the software path knows no device.
        unsafe { (self.library.execute_job)(self.pointer()) }
    }

    /// Hands the job to a device. For the hardware path.
    ///
    /// # Errors
    /// The job, which no device has got, and libqpl's status.
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
        // write the job and the output: if it was submitted, all of them belong to the flight,
        // which gives out none of them and ends their life only when the device is done.
        match unsafe { (self.library.submit_job)(self.pointer()) } {
            Status::OK => Ok(Flight(ManuallyDrop::new(self))),
            refused => Err((self, refused)),
        }
    }

    /// What the run before has made, if its outcome was [`Status::OK`].
    pub(super) fn product(&self) -> Option<Product<'_>> {
        let job: *const qpl_sys::Job = self.memory.as_ptr().cast();
        // SAFETY: the memory holds a job since `new`. No device has it, and it is borrowed, so
        // nobody changes it.
        let job = unsafe { &*job };
        Some(Product {
            input: &self.input,
            output: self.output.get(..job.total_out as usize)?,
            used: job.total_in as usize,
            spare_bits: 8_u32.checked_sub(job.last_bit_offset)? % 8,
        })
    }

    /// The input of the run before.
    pub(super) fn last_input(&self) -> &[u8] {
        &self.input
    }

    /// Sets every field that libqpl reads, as it leaves them in any state, and touches the pages of
    /// the output: a device that meets a missing page gives up or waits for the kernel. (The input
    /// has just been written.)
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
        // Left over from the run before, and not always set by the next.
        job.last_bit_offset = 0;
        Ok(())
    }

    fn pointer(&mut self) -> *mut qpl_sys::Job {
        self.memory.as_mut_ptr().cast()
    }
}

/// A job which a device has.
///
/// Dropping it leaks it: whoever can wait uses [`Flight::check`].
#[derive(Debug)]
pub(super) struct Flight(ManuallyDrop<Job>);

impl Flight {
    /// The job and its outcome, once there is one.
    ///
    /// # Errors
    /// The flight, while the device still has the job.
    pub(super) fn check(mut self) -> Result<(Job, Status), Self> {
        let pointer = self.0.pointer();
        // SAFETY: the memory holds a submitted job.
        match unsafe { (self.0.library.check_job)(pointer) } {
            Status::BEING_PROCESSED => Err(self),
            // With any other status the completion record has been read: the device is done with
            // the job. (A dynamic job whose second half found the queues full was not submitted
            // again.)
            outcome => Ok((ManuallyDrop::into_inner(self.0), outcome)),
        }
    }
}

/// The smallest memory page of a processor that libqpl runs on.
const SMALLEST_PAGE_BYTES: usize = 4096;
