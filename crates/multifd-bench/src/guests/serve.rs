//! The process of a guest.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::guests::content::{Content, fill};
use crate::guests::image::Image;
use crate::guests::linux::Idle;
use crate::guests::pace::{Gate, Worker};
use crate::guests::protocol::{Answer, Order, hear, tell};
use crate::guests::random::Random;
use crate::guests::redis::{Layout, Loaded, Server};
use crate::guests::{Kind, PAGE_BYTES, Spec};

/// A guest's memory: a file that is mapped in this process.
pub trait Ram: Sync {
    /// The file, which other processes can map too.
    fn file(&self) -> &File;

    /// Its address in this process. If another process is to track writes, the mapping is prepared
    /// for it.
    fn address(&self) -> u64;

    /// Writes whole words of 8 bytes, at a multiple of 8, through the mapping.
    ///
    /// # Errors
    ///
    /// If the range is outside the memory.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// Writes the initial content of a guest's memory to a file that is all zero.
///
/// # Errors
///
/// If the spec is invalid, or a file cannot be read or written.
pub fn fill_memory(memory: &File, spec: &Spec) -> io::Result<()> {
    spec.check().map_err(io::Error::other)?;
    fill(memory, &*content(spec)?)
}

/// Runs a guest: takes orders from `input` and answers on `output` until told to stop, or until
/// `input` ends. `make` makes its memory of the given number of bytes, all zero.
///
/// # Errors
///
/// If input or output fails. All other errors are answers to the order.
pub fn serve<R: Ram>(
    input: &mut impl BufRead,
    output: &mut impl Write,
    make: impl FnOnce(u64) -> io::Result<R>,
) -> io::Result<()> {
    let Some(order) = hear(input)? else {
        return Ok(());
    };
    let Order::Start(spec) = order else {
        return tell(
            output,
            &Answer::Failed("the first order has to be start".to_owned()),
        );
    };
    let filled = spec
        .check()
        .map_err(io::Error::other)
        .and_then(|()| make(spec.bytes))
        .and_then(|ram| fill_memory(ram.file(), &spec).map(|()| ram));
    match filled {
        Ok(ram) => run(&spec, &ram, input, output),
        Err(error) => tell(output, &Answer::Failed(error.to_string())),
    }
}

fn run(
    spec: &Spec,
    ram: &dyn Ram,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> io::Result<()> {
    let gates: Vec<_> = (0..spec.threads).map(|_| Gate::default()).collect();
    thread::scope(|scope| {
        for (index, gate) in (0..).zip(&gates) {
            // The first thread gets the remainder.
            let threads = u64::from(spec.threads);
            let rate = spec.rate / threads + if index == 0 { spec.rate % threads } else { 0 };
            scope.spawn(move || gate.run(&mut *worker(spec, ram, index), rate));
        }
        let outcome = obey(ram, &gates, input, output);
        gates.iter().for_each(Gate::end);
        outcome
    })
}

fn obey(
    ram: &dyn Ram,
    gates: &[Gate],
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> io::Result<()> {
    let started = Answer::Started {
        descriptor: ram.file().as_raw_fd(),
        address: ram.address(),
    };
    tell(output, &started)?;
    while let Some(order) = hear(input)? {
        let outcome = match order {
            Order::Pause | Order::Stop => gates.iter().try_for_each(Gate::pause),
            Order::Resume => gates.iter().try_for_each(Gate::resume),
            Order::Digest => {
                let answer = digest(ram.file())
                    .map_or_else(|error| Answer::Failed(error.to_string()), Answer::Digest);
                tell(output, &answer)?;
                continue;
            }
            Order::Start(_) => Err("the guest runs already".to_owned()),
        };
        let acts = gates.iter().map(Gate::acts).sum();
        tell(
            output,
            &outcome.map_or_else(Answer::Failed, |()| Answer::Done { acts }),
        )?;
        if order == Order::Stop {
            break;
        }
    }
    Ok(())
}

fn content(spec: &Spec) -> io::Result<Box<dyn Content>> {
    Ok(match &spec.kind {
        Kind::Idle => Box::new(Idle::new(spec.seed, spec.bytes)),
        Kind::Redis => Box::new(Loaded::new(Layout::new(spec.seed, spec.bytes))),
        Kind::Image(path) => Box::new(Image {
            file: File::open(path).map_err(|error| {
                io::Error::other(format!("cannot open {}: {error}", path.display()))
            })?,
            bytes: spec.bytes,
        }),
    })
}

fn worker<'a>(spec: &Spec, ram: &'a dyn Ram, index: u64) -> Box<dyn Worker + 'a> {
    let pages = spec.bytes / PAGE_BYTES as u64;
    let writes_to = |pages| Writer {
        ram,
        random: Random::new(spec.seed, index),
        pages,
    };
    match spec.kind {
        Kind::Idle => Box::new(writes_to(pages.min(IDLE_PAGES))),
        Kind::Image(_) => Box::new(writes_to(pages)),
        Kind::Redis => Box::new(Server::new(
            ram,
            Layout::new(spec.seed, spec.bytes),
            (index, spec.threads.into()),
        )),
    }
}

/// Writes one word of one page at a time.
struct Writer<'a> {
    ram: &'a dyn Ram,
    random: Random,
    /// The range of pages, from 0.
    pages: u64,
}

impl Worker for Writer<'_> {
    fn act(&mut self, _: Duration) -> io::Result<()> {
        let page = self.random.below(self.pages) * PAGE_BYTES as u64;
        let word = self.random.below(PAGE_BYTES as u64 / 8) * 8;
        let value = self.random.next().to_le_bytes();
        self.ram.write(page + word, &value)
    }
}

fn digest(memory: &File) -> io::Result<String> {
    use std::os::unix::fs::FileExt;
    let mut hash = Sha256::new();
    let mut piece = vec![0; DIGEST_BYTES];
    let (mut offset, end) = (0, memory.metadata()?.len());
    while offset < end {
        let len = usize::try_from(end - offset).map_or(DIGEST_BYTES, |left| left.min(DIGEST_BYTES));
        let piece = piece.get_mut(..len).unwrap_or_default();
        memory.read_exact_at(piece, offset)?;
        hash.update(&*piece);
        offset += len as u64;
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// The number of pages that an idle Linux writes to.
const IDLE_PAGES: u64 = 512;
const DIGEST_BYTES: usize = 1 << 20;
