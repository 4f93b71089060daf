//! A process of its own sends a guest that runs in another process, as an offload daemon beside a
//! VMM does.
//!
//!     cargo run -p multifd-engine --example offload
//!
//! The VMM's part is small: its guest's memory is a memfd, which it registers for tracking and
//! passes on, and it stops and starts the guest when told to. The daemon maps the same memfd, reads
//! what is written from the VMM's page tables, and does all the rest. Here the daemon starts the
//! VMM as its child and is the destination too, so that one command shows everything.

use std::fs::File;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use multifd_engine::destination::{self, DestinationSettings, Offer};
use multifd_engine::dirty::{PagemapLog, WriteTracking};
use multifd_engine::memory::{MappedMemory, Mapping};
use multifd_engine::source::{self, Guest};
use multifd_engine::{Parameters, VmError, VmHandle};
use multifd_transport::Cancel;
use multifd_transport::incoming::Acceptor;
use multifd_wire::{BlockName, Method};

type Outcome<T> = Result<T, VmError>;

const MEMORY_BYTES: usize = 32 << 20;

/// Words that the guest writes in a step.
const WRITES: u64 = 64;

/// The argument that makes this program the VMM.
const VMM: &str = "--vmm";

/// The VMM: a guest that writes all over its memory, and a conversation over stdin and stdout.
fn vmm() -> Outcome<()> {
    use std::os::fd::AsRawFd;
    let memory = Mapping::memfd("guest", MEMORY_BYTES)?;
    let _tracking = WriteTracking::register(&[memory.range()])?;
    let addresses = memory.range().addresses();
    println!(
        "{} {} {}",
        memory.file().as_raw_fd(),
        addresses.start,
        addresses.end
    );
    let running = Mutex::new(true);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for step in 0_u64.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // Held during a step: whoever has it knows that there is none.
                let running = running.lock().unwrap_or_else(PoisonError::into_inner);
                for write in step * WRITES..(step + 1) * WRITES {
                    let word =
                        write.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (MEMORY_BYTES as u64 / 8);
                    if *running {
                        // Every such word of the memory is inside it.
                        let _ = memory.range().write(word * 8, &write.to_ne_bytes());
                    }
                }
                drop(running);
                thread::yield_now();
            }
        });
        // The daemon's end of stdin closes when it is done.
        for line in stdin().lines() {
            let Ok(line) = line else { break };
            *running.lock().unwrap_or_else(PoisonError::into_inner) = line == "resume";
            println!("done");
            if stdout().flush().is_err() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// The VMM as the daemon knows it.
struct Vmm {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Vmm {
    fn ask(&mut self, what: &str) -> Result<String, VmError> {
        writeln!(self.requests, "{what}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer)
    }
}

impl VmHandle for Vmm {
    fn pause(&mut self) -> Result<(), VmError> {
        self.ask("pause").map(|_| ())
    }

    fn resume(&mut self) -> Result<(), VmError> {
        self.ask("resume").map(|_| ())
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        Ok(b"this guest has no devices".to_vec())
    }

    fn load_device_state(&mut self, _: &[u8]) -> Result<(), VmError> {
        Err("this end only sends".into())
    }
}

/// A VMM at the destination that would run the guest now.
struct Taken;

impl VmHandle for Taken {
    fn pause(&mut self) -> Result<(), VmError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmError> {
        Ok(())
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        Err("this end only receives".into())
    }

    fn load_device_state(&mut self, _: &[u8]) -> Result<(), VmError> {
        Ok(())
    }
}

/// The daemon. `vmm` starts the VMM.
fn daemon(mut vmm: Command) -> Outcome<()> {
    let mut process = vmm.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let requests = process.stdin.take().ok_or("no stdin")?;
    let mut answers = BufReader::new(process.stdout.take().ok_or("no stdout")?);
    let mut line = String::new();
    answers.read_line(&mut line)?;
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let &[descriptor, start, end] = numbers.as_slice() else {
        return Err(format!("the VMM said {line:?}").into());
    };
    let addresses = start..end;
    let pid = process.id();
    let mut vmm = Vmm {
        process,
        requests,
        answers,
    };

    // A VMM that is no child passes the descriptor over a unix socket instead.
    let memfd = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/fd/{descriptor}"))?;
    let block = (BlockName::new(b"ram")?, Mapping::shared(memfd.into())?);
    let memory = MappedMemory::new(vec![block]);
    let mut log = PagemapLog::of_process(pid, vec![addresses])?;

    let mut acceptor = Acceptor::bind(&"tcp:127.0.0.1:0".parse()?)?;
    let address = acceptor.address().clone();
    let mut parameters = Parameters::default();
    parameters.multifd_compression = Method::Zlib;
    parameters.digest = true;
    thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let settings = DestinationSettings::default();
            let (cancel, mut vm) = (Cancel::new(), Taken);
            destination::receive(
                &mut acceptor,
                memory_for,
                &mut vm,
                &settings,
                &cancel,
                &mut |_| {},
            )
        });
        let guest = Guest {
            uuid: [0; 16],
            memory: &memory,
            dirty: &mut log,
            vm: &mut vmm,
        };
        let sent = source::send(&address, guest, &parameters, &Cancel::new(), &mut |_| {});
        let received = destination.join().map_err(|_| "the destination crashed")?;
        let statistics = sent?;
        let digest = received?.digest.ok_or("no digest")?;
        println!(
            "{} pages with contents and {} without in {} rounds, {:?}, of which the guest stood still {:?}",
            statistics.normal,
            statistics.duplicate,
            statistics.rounds,
            statistics.total_time,
            statistics.downtime
        );
        println!(
            "equal to the byte: digest {:02x?}...",
            digest.first_chunk::<4>()
        );
        Ok::<_, VmError>(())
    })?;
    let Vmm {
        mut process,
        requests,
        ..
    } = vmm;
    drop(requests);
    match process.wait()?.success() {
        true => Ok(()),
        false => Err("the VMM failed".into()),
    }
}

/// Memory as a destination makes it for a guest.
fn memory_for(offer: &Offer) -> Result<MappedMemory, VmError> {
    let blocks = offer.blocks.iter().map(|block| {
        let len_bytes = usize::try_from(block.len_bytes)?;
        Ok((block.name.clone(), Mapping::memfd("guest", len_bytes)?))
    });
    Ok(MappedMemory::new(blocks.collect::<Result<_, VmError>>()?))
}

fn main() -> Outcome<()> {
    if std::env::args().nth(1).as_deref() == Some(VMM) {
        return vmm();
    }
    let mut vmm = Command::new(std::env::current_exe()?);
    vmm.arg(VMM);
    daemon(vmm)
}
