//! A work queue: a pipe that libqpl writes descriptors to, and the thread that executes them.
//!
//! libqpl opens the queue's device node, tries to map its portal, and if that fails writes its
//! descriptors to the node. The node here is a pipe under `/proc/self/fd`: it opens, cannot be
//! mapped and accepts writes. In *packet mode* a pipe has a fixed number of places, one for each
//! write of any length, and a full pipe refuses non-blocking writes. So the pipe is the queue, its
//! places are the queue's depth, and the kernel does the refusing.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::descriptor::{Descriptor, LEN, Record, op_flag, opcode, status};
use crate::engine;
use crate::machine::MACHINE;
use crate::memory::Work;
use crate::settings::{FaultKind, Order};

/// A work queue.
pub(crate) struct Queue {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Queue {
    /// Makes a queue with `depth` places, a power of two, and a thread that serves it until the
    /// process ends.
    pub(crate) fn start(depth: u32) -> io::Result<Arc<Queue>> {
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&writer, depth as usize * PLACE_BYTES)?;
        let queue = Arc::new(Queue { reader, writer });
        let served = Arc::clone(&queue);
        thread::Builder::new()
            .name("iaa-sim".to_owned())
            .spawn(move || served.serve())?;
        Ok(queue)
    }

    /// The path that libqpl opens.
    pub(crate) fn device_node(&self) -> String {
        format!("/proc/self/fd/{}", self.writer.as_raw_fd())
    }

    /// Takes every free place, like another program's descriptors.
    pub(crate) fn fill(&self) {
        while rustix::io::write(&self.writer, &FILLER).is_ok() {}
    }

    fn serve(self: Arc<Queue>) {
        let mut opened = false;
        while self.wait() {
            let mut taken: Vec<_> = if opened {
                MACHINE.when_running(|settings| match settings.order {
                    Order::Queue => self.take().into_iter().collect(),
                    Order::Reversed => std::iter::from_fn(|| self.take()).collect(),
                })
            } else {
                // libqpl waits for the probe's answer without a time limit, so settings do not
                // apply to it.
                self.take().into_iter().collect()
            };
            while let Some(bytes) = taken.pop() {
                opened = true;
                if bytes != FILLER {
                    // SAFETY: only this process can write to the pipe, and only `fill` and libqpl,
                    // which got the device node for this purpose, do so. So this is a descriptor
                    // that libqpl submits, and its caller keeps the job and its buffers until
                    // completion.
                    let work = unsafe { Work::submitted(Descriptor::new(bytes)) };
                    self.process(work);
                }
            }
        }
    }

    /// Waits for a descriptor. Returns whether one can still come.
    fn wait(&self) -> bool {
        let mut readable = [PollFd::new(&self.reader, PollFlags::IN)];
        let waited = poll(&mut readable, None);
        // A signal may end the wait early; the next wait makes up for it.
        let fatal = waited
            .err()
            .filter(|error| *error != rustix::io::Errno::INTR);
        if let Some(error) = fatal {
            eprintln!("iaa-sim: a work queue is lost: {error}");
        }
        fatal.is_none()
    }

    fn take(&self) -> Option<[u8; LEN]> {
        let mut bytes = [0; LEN];
        match rustix::io::read(&self.reader, &mut bytes) {
            Ok(LEN) => Some(bytes),
            _ => None,
        }
    }

    fn process(self: &Arc<Queue>, work: Work) {
        if work.descriptor().opcode() == opcode::NOOP {
            self.admit_writers();
            MACHINE.count(|counters| counters.probes += 1);
            MACHINE.opened(self);
            return work.complete(Record::failure(status::SUCCESS, 0));
        }
        let turn = MACHINE.next_turn();
        if !turn.latency.is_zero() {
            thread::sleep(turn.latency);
        }
        count_operation(work.descriptor());
        match turn.fault.and_then(|fault| apply(fault, work.descriptor())) {
            Some(Outcome::Record(record)) => work.complete(record),
            Some(Outcome::Lost) => {}
            Some(Outcome::Late(delay)) => {
                // The process may end before, as with a real device.
                thread::spawn(move || {
                    thread::sleep(delay);
                    do_work(work);
                });
            }
            None => do_work(work),
        }
    }

    /// Makes the opener of the device node write packets without blocking.
    ///
    /// libqpl opens the node without either flag, before the probe, and then waits for the probe's
    /// answer. At this moment all later writes can be configured.
    fn admit_writers(&self) {
        let admit = || -> io::Result<()> {
            let own = [self.reader.as_raw_fd(), self.writer.as_raw_fd()];
            let pipe = std::fs::read_link(self.device_node())?;
            for entry in std::fs::read_dir("/proc/self/fd")? {
                let entry = entry?;
                let number = entry.file_name().to_string_lossy().parse();
                let Some(number) = number.ok().filter(|number| !own.contains(number)) else {
                    continue;
                };
                if std::fs::read_link(entry.path()).is_ok_and(|target| target == pipe) {
                    // SAFETY: the descriptor was just verified to be libqpl's end of this pipe, and
                    // libqpl keeps it open at least until the probe is answered.
                    let fd = unsafe { BorrowedFd::borrow_raw(number) };
                    let flags = fcntl_getfl(fd)?;
                    fcntl_setfl(fd, flags | OFlags::DIRECT | OFlags::NONBLOCK)?;
                }
            }
            Ok(())
        };
        if let Err(error) = admit() {
            eprintln!("iaa-sim: the queue will not refuse when it is full: {error}");
        }
    }
}

fn do_work(work: Work) {
    let record = engine::execute(&work, MACHINE.settings().max_transfer_bytes);
    MACHINE.count(|counters| match record.status {
        status::SUCCESS => counters.successes += 1,
        _ => counters.failures += 1,
    });
    work.complete(record);
}

enum Outcome {
    Record(Record),
    Lost,
    Late(Duration),
}

/// The effect of an injected fault on a descriptor; `None` if it does not apply.
fn apply(fault: FaultKind, descriptor: &Descriptor) -> Option<Outcome> {
    let page_fault = |status, fault_address| {
        (!descriptor.has(op_flag::BLOCK_ON_FAULT)).then(|| {
            Outcome::Record(Record {
                fault_address,
                ..Record::failure(status, 0)
            })
        })
    };
    let outcome = match fault {
        FaultKind::ReadPage => page_fault(status::READ_PAGE_FAULT, descriptor.source_address()),
        FaultKind::ReadPageNowhere => page_fault(status::READ_PAGE_FAULT, 0),
        FaultKind::WritePage => {
            page_fault(status::WRITE_PAGE_FAULT, descriptor.destination_address())
        }
        FaultKind::WritePageNowhere => page_fault(status::WRITE_PAGE_FAULT, 0),
        FaultKind::Record { status, error } => {
            Some(Outcome::Record(Record::failure(status, error)))
        }
        FaultKind::Lost => Some(Outcome::Lost),
        FaultKind::Late(delay) => Some(Outcome::Late(delay)),
    }?;
    MACHINE.count(|counters| match fault {
        FaultKind::ReadPage | FaultKind::ReadPageNowhere => counters.read_faults += 1,
        FaultKind::WritePage | FaultKind::WritePageNowhere => counters.write_faults += 1,
        FaultKind::Record { .. } => counters.records += 1,
        FaultKind::Lost => counters.lost += 1,
        FaultKind::Late(_) => counters.late += 1,
    });
    Some(outcome)
}

fn count_operation(descriptor: &Descriptor) {
    use crate::descriptor::compress_flag::STATISTICS;

    MACHINE.count(|counters| match descriptor.opcode() {
        opcode::COMPRESS if descriptor.flags() & STATISTICS != 0 => counters.statistics += 1,
        opcode::COMPRESS => counters.compressions += 1,
        opcode::DECOMPRESS => counters.decompressions += 1,
        _ => counters.others += 1,
    });
}

/// A packet takes a page of the pipe, whatever its length; x86-64's pages have this size.
const PLACE_BYTES: usize = 4096;

/// Not a descriptor: its first word, which libqpl sets to 0, marks it.
const FILLER: [u8; LEN] = [0xff; LEN];
