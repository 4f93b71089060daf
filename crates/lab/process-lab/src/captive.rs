//! A process's memory, its copy, and the pages written since.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use multifd_engine::dirty::{DirtyBitmap, DirtyLog, DirtyLogError, PagemapLog};
use multifd_engine::memory::{GuestMemory, MappedMemory, Mapping, MemoryBlock};
use multifd_engine::{VmError, VmHandle};
use multifd_wire::{BlockName, PageSize};
use rustix::process::{Pid, Signal, kill_process};

use crate::injection;
use crate::ranges::writable;

/// A process with a copy of its memory. Each of its writable mappings is a RAM block, named by its
/// address.
#[derive(Debug)]
pub struct Captive {
    pid: u32,
    memory: File,
    ranges: Vec<Range<u64>>,
    copy: MappedMemory,
}

impl Captive {
    /// Makes the memory of a process trackable. The process should be idle for a moment. Later
    /// mappings are not included.
    ///
    /// # Errors
    ///
    /// If it cannot be traced or tracked.
    pub fn take(pid: u32) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        let memory = options
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        let ranges = writable(pid)?;
        injection::register(pid, &memory, &ranges)?;
        let copy = |range: &Range<u64>| {
            let name = format!("{:x}", range.start);
            let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
            let name = BlockName::new(name.as_bytes()).map_err(io::Error::other)?;
            Ok((name, Mapping::memfd("process-lab", len)?))
        };
        let copies: io::Result<Vec<_>> = ranges.iter().map(copy).collect();
        Ok(Self {
            pid,
            memory,
            copy: MappedMemory::new(copies?),
            ranges,
        })
    }

    /// Its dirty log for an engine. Fetching it also updates the copy.
    ///
    /// # Errors
    ///
    /// If its page tables cannot be read.
    pub fn log(&self) -> Result<CopyLog<'_>, DirtyLogError> {
        let written = self.copy.blocks();
        let empty =
            |block: MemoryBlock<'_>| DirtyBitmap::new(block.range.len_bytes(), PageSize::K4);
        Ok(CopyLog {
            captive: self,
            log: PagemapLog::of_process(self.pid, self.ranges.clone())?,
            written: written.into_iter().map(empty).collect(),
        })
    }

    /// Stops and resumes it for an engine.
    #[must_use]
    pub fn freezer(&self) -> Freezer<'_> {
        Freezer { captive: self }
    }

    /// The blocks' names, and the process's own current content.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn contents(&self) -> impl Iterator<Item = io::Result<(BlockName, Vec<u8>)>> {
        let blocks = self.ranges.iter().zip(self.copy.mappings());
        blocks.map(|(range, (name, mapping))| {
            let mut bytes = vec![0; mapping.range().len_bytes()];
            self.memory.read_exact_at(&mut bytes, range.start)?;
            Ok((name.clone(), bytes))
        })
    }

    fn copy(&self, block: usize, offset: u64, len: usize) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let range = self.ranges.get(block).ok_or_else(gone)?;
        let (_, mapping) = self.copy.mappings().get(block).ok_or_else(gone)?;
        let mut bytes = vec![0; len];
        self.memory
            .read_exact_at(&mut bytes, range.start + offset)?;
        mapping
            .range()
            .write(offset, &bytes)
            .map_err(io::Error::other)
    }
}

impl GuestMemory for Captive {
    fn blocks(&self) -> Vec<MemoryBlock<'_>> {
        self.copy.blocks()
    }
}

/// A log that copies the pages it reports. A page written during its copy is reported and copied
/// again.
#[derive(Debug)]
pub struct CopyLog<'a> {
    captive: &'a Captive,
    log: PagemapLog,
    /// The pages written since the last fetch, one bitmap for each block.
    written: Vec<DirtyBitmap>,
}

impl DirtyLog for CopyLog<'_> {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.log.start()?;
        for (index, range) in self.captive.ranges.iter().enumerate() {
            for offset in (0..range.end - range.start).step_by(PIECE_BYTES) {
                let left = range.end - range.start - offset;
                let len = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
                self.captive.copy(index, offset, len).map_err(other)?;
            }
        }
        Ok(())
    }

    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        self.written.iter_mut().for_each(DirtyBitmap::clear);
        self.log.fetch(&mut self.written)?;
        for (index, (written, dirty)) in self.written.iter().zip(dirty).enumerate() {
            let len = written.page_size().bytes();
            let mut next = written.next(0);
            while let Some(page) = next {
                let offset = (page * len) as u64;
                self.captive.copy(index, offset, len).map_err(other)?;
                dirty.insert_bytes(offset..offset + len as u64);
                next = written.next(page + 1);
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.log.stop();
    }
}

/// Stops a process by a signal, and resumes it by another.
#[derive(Debug)]
pub struct Freezer<'a> {
    captive: &'a Captive,
}

impl Freezer<'_> {
    fn signal(&self, signal: Signal) -> Result<(), VmError> {
        let pid = i32::try_from(self.captive.pid).ok().and_then(Pid::from_raw);
        Ok(kill_process(
            pid.ok_or("no process has this number")?,
            signal,
        )?)
    }

    /// Returns whether all its threads have stopped.
    fn is_frozen(&self) -> io::Result<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.captive.pid))? {
            let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else {
                // It was there when the folder was listed, and has ended since.
                return Ok(false);
            };
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            if !state.starts_with('T') {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl VmHandle for Freezer<'_> {
    fn pause(&mut self) -> Result<(), VmError> {
        self.signal(Signal::STOP)?;
        let deadline = Instant::now() + PATIENCE;
        while !self.is_frozen()? {
            if Instant::now() > deadline {
                return Err("a thread of the process does not stop".into());
            }
            thread::sleep(Duration::from_micros(100));
        }
        if writable(self.captive.pid)? != self.captive.ranges {
            return Err("the process has other memory than when it was taken".into());
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmError> {
        self.signal(Signal::CONT)
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        Ok(Vec::new())
    }

    fn load_device_state(&mut self, _: &[u8]) -> Result<(), VmError> {
        Err("a process can only be sent".into())
    }
}

fn other(error: io::Error) -> DirtyLogError {
    let error: Box<dyn std::error::Error + Send + Sync> = error.into();
    error.into()
}

const PIECE_BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
