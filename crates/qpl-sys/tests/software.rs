//! The functions on the real library's software path, if libqpl is present.

mod support;

use std::ffi::c_void;
use std::ptr;

use qpl_sys::{
    Allocator, CompressionLevel, Flags, Histogram, Job, Library, MiniBlockSize, Operation, Path,
    StatisticsMode, Status, TableType,
};

use support::not_run;

unsafe extern "C" {
    fn malloc(len_bytes: usize) -> *mut c_void;
    fn free(memory: *mut c_void);
}

const C_ALLOCATOR: Allocator = Allocator {
    allocate: malloc,
    free,
};

#[test]
fn a_page_survives_the_software_path() {
    let Some(library) = library("a_page_survives_the_software_path") else {
        return;
    };
    let page = page();
    let mut memory = job(library);
    for huffman in [Flags::NONE, Flags::DYNAMIC_HUFFMAN, Flags::ZLIB_MODE] {
        let packed = run(
            library,
            &mut memory,
            Operation::COMPRESS,
            huffman | Flags::OMIT_VERIFY,
            ptr::null_mut(),
            &page,
            8192,
        );
        assert!(packed.len() < page.len(), "{huffman:?}: {}", packed.len());
        let wrapper = Flags(huffman.0 & Flags::ZLIB_MODE.0);
        let unpacked = run(
            library,
            &mut memory,
            Operation::DECOMPRESS,
            wrapper,
            ptr::null_mut(),
            &packed,
            page.len(),
        );
        assert_eq!(unpacked, page);
    }
}

#[test]
fn a_table_serves_both_directions() {
    let Some(library) = library("a_table_serves_both_directions") else {
        return;
    };
    let page = page();
    let mut histogram = Histogram::default();
    let source = page.as_ptr().cast_mut();
    // SAFETY: `source` has the stated length and the library only reads it; the histogram is live.
    let status = unsafe {
        (library.gather_deflate_statistics)(
            source,
            page.len() as u32,
            &mut histogram,
            CompressionLevel::DEFAULT,
            Path::SOFTWARE,
        )
    };
    assert_eq!(status, Status::OK);
    assert_eq!(
        histogram.literal_lengths[256], 1,
        "one end of block per call"
    );

    let mut table = ptr::null_mut();
    // SAFETY: the allocator is C's, and `table` is writable.
    let status = unsafe {
        (library.deflate_huffman_table_create)(
            TableType::COMBINED,
            Path::SOFTWARE,
            C_ALLOCATOR,
            &mut table,
        )
    };
    assert_eq!(status, Status::OK);
    // SAFETY: the table was just made, and the histogram is live.
    let status = unsafe { (library.huffman_table_init_with_histogram)(table, &histogram) };
    assert_eq!(status, Status::OK);

    let mut memory = job(library);
    let canned = Flags::CANNED_MODE | Flags::OMIT_VERIFY;
    let packed = run(
        library,
        &mut memory,
        Operation::COMPRESS,
        canned,
        table,
        &page,
        8192,
    );
    let unpacked = run(
        library,
        &mut memory,
        Operation::DECOMPRESS,
        Flags::CANNED_MODE,
        table,
        &packed,
        page.len(),
    );
    assert_eq!(unpacked, page);

    // SAFETY: no job uses the table any more.
    let status = unsafe { (library.huffman_table_destroy)(table) };
    assert_eq!(status, Status::OK);
}

#[test]
fn the_version_has_three_numbers() {
    let Some(library) = library("the_version_has_three_numbers") else {
        return;
    };
    let version = library.version().to_str().expect("digits and points");
    assert_eq!(
        version
            .split('.')
            .map(str::parse::<u32>)
            .filter(Result::is_ok)
            .count(),
        3,
        "{version}"
    );
}

/// Text with matches at several distances.
fn page() -> Vec<u8> {
    let mut page: Vec<u8> = (0..400)
        .flat_map(|n| format!("record {n:04}: {};", n * n).into_bytes())
        .collect();
    page.truncate(4096);
    page
}

/// The memory of a software job, aligned as a job must be.
fn job(library: &Library) -> Vec<u64> {
    let mut len_bytes = 0;
    // SAFETY: `len_bytes` is writable.
    let status = unsafe { (library.job_size)(Path::SOFTWARE, &mut len_bytes) };
    assert_eq!(status, Status::OK);
    let mut memory = vec![0_u64; (len_bytes as usize).div_ceil(8)];
    // SAFETY: the memory has the size that the library requires, and the vector never grows, so it
    // does not move.
    let status = unsafe { (library.init_job)(Path::SOFTWARE, memory.as_mut_ptr().cast()) };
    assert_eq!(status, Status::OK);
    memory
}

fn run(
    library: &Library,
    memory: &mut [u64],
    op: Operation,
    flags: Flags,
    table: qpl_sys::HuffmanTable,
    input: &[u8],
    room: usize,
) -> Vec<u8> {
    let mut output = vec![0; room];
    let pointer: *mut Job = memory.as_mut_ptr().cast();
    // SAFETY: `job` made `memory`, so it holds an initialised job, and no other reference to it
    // exists.
    let job = unsafe { &mut *pointer };
    job.op = op;
    job.flags = Flags::FIRST | Flags::LAST | flags;
    job.level = CompressionLevel::DEFAULT;
    job.statistics_mode = StatisticsMode::COMPRESSION;
    job.mini_block_size = MiniBlockSize::NONE;
    job.huffman_table = table;
    job.next_in_ptr = input.as_ptr().cast_mut();
    job.available_in = input.len() as u32;
    job.next_out_ptr = output.as_mut_ptr();
    job.available_out = output.len() as u32;
    // SAFETY: every input field is set, input and output are live and have the stated lengths, and
    // the software path only reads the input.
    let status = unsafe { (library.execute_job)(pointer) };
    assert_eq!(status, Status::OK);
    // SAFETY: the job is done, and no other reference to it exists.
    let total_out = unsafe { (*pointer).total_out };
    output.truncate(total_out as usize);
    output
}

fn library(test: &str) -> Option<&'static Library> {
    match Library::open() {
        Ok(library) => Some(library),
        Err(error) => {
            // The last cause is the loader's own message.
            let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
                error.source()
            });
            not_run(
                test,
                &causes
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(": "),
            );
            None
        }
    }
}
