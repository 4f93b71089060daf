//! Finds the working parts of libqpl, and the reasons why others do not work.

use std::error::Error;
use std::iter::successors;
use std::path::Path as FilePath;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use iaa_detect::detect;
use page_deflate::{CodeLengths, Effort, Histogram, PageDeflater, PageInflater, SharedInflater};
use qpl_sys::{Library, NumaId, Path, Status};

use super::bits::push_bits;
use super::hardware::await_end;
use super::job::{Job, Work};
use super::table::Table;
use crate::Huffman;

/// The work expected of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Compress,
    /// Compresses pages to bodies of blocks.
    CompressBodies,
    Decompress,
}

/// Opens libqpl; its software path always works.
///
/// # Errors
/// The reason as a phrase.
pub(crate) fn software() -> Result<&'static Library, Arc<str>> {
    Library::open().map_err(|error| {
        // The loader's own message comes last and names the library that is missing or too old.
        let causes = successors(Some(&error as &dyn Error), |&error| error.source());
        let words = causes.last().map(ToString::to_string);
        format!("no libqpl: {}", words.unwrap_or_default()).into()
    })
}

/// Opens libqpl and verifies that its software path makes bodies of blocks as expected.
///
/// # Errors
/// The reason as a phrase.
pub(crate) fn software_bodies() -> Result<&'static Library, Arc<str>> {
    static MAKES_THEM: OnceLock<Result<(), Arc<str>>> = OnceLock::new();

    let library = software()?;
    let makes_them = MAKES_THEM.get_or_init(|| {
        let mut job = Job::new(library, Path::SOFTWARE).map_err(explain)?;
        let bodies = Bodies::new(library)?;
        job.input().extend_from_slice(&bodies.page);
        let status = job.run(&bodies.work(), ROOM);
        let product = job.product().filter(|_| status == Status::OK);
        match product {
            Some(product) if bodies.are(product.output, None) => Ok(()),
            _ => Err("this libqpl's canned mode is not the known one".into()),
        }
    });
    makes_them.clone().map(|()| library)
}

/// Opens libqpl and verifies that its hardware does the work of this direction on one page.
///
/// libqpl looks for devices once per process, and so does this function.
///
/// # Errors
/// The reason as a phrase.
pub(crate) fn hardware(direction: Direction) -> Result<&'static Library, Arc<str>> {
    static FOUND: OnceLock<Found> = OnceLock::new();

    let library = software()?;
    let found = FOUND.get_or_init(|| Found::look(library));
    let works = match direction {
        Direction::Compress => &found.compress,
        Direction::CompressBodies => &found.compress_bodies,
        Direction::Decompress => &found.decompress,
    };
    works.clone().map(|()| library)
}

/// Explains a status of the hardware path on this machine.
pub(super) fn explain(status: Status) -> Arc<str> {
    match detect(FilePath::new("/")).explain_status(status.0) {
        Some(obstacle) => format!("no IAA: {obstacle}").into(),
        None => format!("no IAA: {status}").into(),
    }
}

struct Found {
    compress: Result<(), Arc<str>>,
    compress_bodies: Result<(), Arc<str>>,
    decompress: Result<(), Arc<str>>,
}

impl Found {
    fn look(library: &'static Library) -> Self {
        let compress = try_compress(library);
        let compress_bodies = compress.clone().and_then(|()| try_compress_body(library));
        let decompress = try_decompress(library);
        Self {
            compress,
            compress_bodies,
            decompress,
        }
    }
}

/// Sends a page through the device and back in software, with both codes. Verifies the result and
/// the end reported by the device.
fn try_compress(library: &'static Library) -> Result<(), Arc<str>> {
    let page = page();
    for huffman in [Huffman::Fixed, Huffman::Dynamic] {
        let Some(job) = run(library, &Work::Compress(huffman), &page)? else {
            return Ok(());
        };
        let product = job.product().ok_or("no IAA: it says what cannot be")?;
        let mut back = vec![0; page.len()];
        let spare_bits = PageInflater::new().inflate_block(product.output, &mut back);
        if spare_bits != Ok(product.spare_bits) || back != page {
            return Err("no IAA: it compresses a page to something else".into());
        }
    }
    Ok(())
}

/// Compresses a page to the body of a block on the device, and decompresses it in software.
fn try_compress_body(library: &'static Library) -> Result<(), Arc<str>> {
    let bodies = Bodies::new(library)?;
    let Some(job) = run(library, &bodies.work(), &bodies.page)? else {
        return Ok(());
    };
    match job.product() {
        Some(product) if bodies.are(product.output, Some(product.spare_bits)) => Ok(()),
        _ => Err("no IAA: in canned mode it compresses a page to something else".into()),
    }
}

/// Compresses a page in software and decompresses it on the device.
fn try_decompress(library: &'static Library) -> Result<(), Arc<str>> {
    let page = page();
    let mut job = Job::new(library, Path::SOFTWARE).map_err(explain)?;
    job.input().extend_from_slice(&page);
    let status = job.run(&Work::Compress(Huffman::Dynamic), page.len());
    let product = job.product().filter(|_| status == Status::OK);
    let stream = product
        .ok_or("no IAA: libqpl cannot compress a page")?
        .output;
    let Some(job) = run(library, &Work::Decompress, stream)? else {
        return Ok(());
    };
    match job.product() {
        Some(product) if product.output == page && product.used == stream.len() => Ok(()),
        _ => Err("no IAA: it decompresses a page to something else".into()),
    }
}

/// A page, and a code for its body.
struct Bodies {
    page: Vec<u8>,
    lengths: CodeLengths,
    table: Arc<Table>,
}

impl Bodies {
    fn new(library: &'static Library) -> Result<Self, Arc<str>> {
        let page = page();
        let mut histogram = Histogram::new();
        PageDeflater::new(Effort::Fast).count(&page, &mut histogram);
        let lengths = histogram.code_lengths();
        let table = Table::new(library, &lengths).map_err(explain)?;
        Ok(Self {
            page,
            lengths,
            table: Arc::new(table),
        })
    }

    fn work(&self) -> Work {
        Work::CompressBody(Arc::clone(&self.table))
    }

    /// Returns whether this is the expected output.
    fn are(&self, output: &[u8], spare_bits: Option<u32>) -> bool {
        let Some(bits) = self.table.body_bits(output, spare_bits) else {
            return false;
        };
        let mut body = Vec::new();
        push_bits(output, bits, &mut body);
        let mut back = vec![0; self.page.len()];
        let read = SharedInflater::new(&self.lengths).inflate(&body, &mut back);
        read.is_ok() && back == self.page
    }
}

/// Runs one job on the device. Returns `None` if its queues are full of others' work: there is a
/// device, and its first use will show whether it works.
fn run(library: &'static Library, work: &Work, input: &[u8]) -> Result<Option<Job>, Arc<str>> {
    let mut job = Job::new(library, Path::HARDWARE).map_err(explain)?;
    job.input().extend_from_slice(input);
    let started = Instant::now();
    loop {
        // Any device: the thread that will do the work is not known here.
        let ended = match job.submit(work, ROOM, NumaId::ANY) {
            Ok(flight) => await_end(flight).ok_or("no IAA: it does not answer")?,
            Err(refused) => refused,
        };
        job = match ended {
            (job, Status::OK) => return Ok(Some(job)),
            (job, Status::QUEUES_ARE_BUSY) => job,
            (_, status) => return Err(explain(status)),
        };
        if started.elapsed() >= BUSY_FOR {
            return Ok(None);
        }
        if job.reset() != Status::OK {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A page with matches near and far, and bytes without a match.
fn page() -> Vec<u8> {
    let odd = (0_u32..).flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes());
    let even = (0_u32..).flat_map(|number| format!("page {}", number % 37).into_bytes());
    odd.take(PAGE_BYTES / 4)
        .chain(even)
        .take(PAGE_BYTES)
        .collect()
}

const PAGE_BYTES: usize = 4096;
const ROOM: usize = PAGE_BYTES;

/// A queue that stays full for longer is left to the codec.
const BUSY_FOR: Duration = Duration::from_millis(50);
