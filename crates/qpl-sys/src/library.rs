//! Finds and opens the library.

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use crate::{Allocator, CompressionLevel, Histogram, HuffmanTable, Job, Path, Status, TableType};

/// The library's file name. Every release 1.x has it.
const SONAME: &str = "libqpl.so.1";

/// Why libqpl is not usable here.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OpenError(#[from] Unusable);

#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// The dynamic loader did not find the library, or could not load it: a dependency is missing
    /// or too old.
    #[error("{name} cannot be loaded")]
    Load {
        /// The name of the library.
        name: &'static str,
        /// The loader's message.
        source: libloading::Error,
    },
    /// The library lacks a function that every release since 0.3 has.
    #[error("{name} has no function {symbol}")]
    MissingSymbol {
        /// The name of the library.
        name: &'static str,
        /// The missing function.
        symbol: &'static str,
        /// The loader's message.
        source: libloading::Error,
    },
}

/// The library's functions.
///
/// Each field is a C function under its name without `qpl_`. A pointer argument must be valid for
/// the function's use of it; the field states all further demands. One job, or one table under
/// change, belongs to one thread at a time.
#[derive(Debug)]
pub struct Library {
    /// `(path, size)`: writes to `size` the number of bytes that a [`Job`] of this path needs,
    /// about 190 KB for hardware and 740 KB for software.
    ///
    /// [`Status::PATH`] for an unknown path.
    #[doc(alias = "qpl_get_job_size")]
    pub job_size: unsafe extern "C" fn(Path, *mut u32) -> Status,

    /// `(path, job)`: makes the job in an allocation of [`Library::job_size`] bytes, once in its
    /// life. An alignment of 8 is enough.
    ///
    /// On the hardware path the first call of the process looks for devices, and later ones repeat
    /// its answer: [`Status::OK`] or a status from 500 on. After a refusal the allocation must not
    /// be used as a job: it would be a software job in too little memory.
    #[doc(alias = "qpl_init_job")]
    pub init_job: unsafe extern "C" fn(Path, *mut Job) -> Status,

    /// `(job)`: runs the job and waits, without a time limit, until it is done.
    ///
    /// After a decompression, [`Status::OK`] does not prove that the stream was complete: the
    /// software path accepts a truncated stream, and neither path verifies the trailer of a zlib or
    /// gzip wrapper.
    #[doc(alias = "qpl_execute_job")]
    pub execute_job: unsafe extern "C" fn(*mut Job) -> Status,

    /// `(job)`: hands the job to the device. On the software path it runs the job and returns its
    /// outcome.
    ///
    /// After [`Status::OK`] on hardware, the job, its buffers, its table and its index belong to
    /// the device until [`Library::check_job`] reports completion. The
    /// library does not guard against a second submission.
    #[doc(alias = "qpl_submit_job")]
    pub submit_job: unsafe extern "C" fn(*mut Job) -> Status,

    /// `(job)`: the outcome of a submitted job, or [`Status::BEING_PROCESSED`].
    ///
    /// A dynamic job goes to the device twice, the second time from within this call, which may
    /// find the queues busy. After [`Status::QUEUES_ARE_BUSY`] for that reason, libqpl 1.9.0
    /// returns it for ever, and submitting the job again repeats its first pass without end: only
    /// [`Library::init_job`] makes the job usable again. The software path always returns
    /// [`Status::OK`], whatever the job's outcome was.
    #[doc(alias = "qpl_check_job")]
    pub check_job: unsafe extern "C" fn(*mut Job) -> Status,

    /// `(source, len_bytes, histogram, level, path)`: adds the symbols of `source` to `histogram`,
    /// and one end of block per call.
    ///
    /// Entries that stay 0 are raised, so that a table made from the result has a code for every
    /// symbol. The hardware path without a device always returns
    /// [`Status::INIT_WORK_QUEUES_NOT_AVAILABLE`].
    #[doc(alias = "qpl_gather_deflate_statistics")]
    pub gather_deflate_statistics:
        unsafe extern "C" fn(*mut u8, u32, *mut Histogram, CompressionLevel, Path) -> Status,

    /// `(type, path, allocator, table)`: writes to `table` a new empty table. It must be filled
    /// before use: a job with an empty table compresses to garbage or crashes.
    #[doc(alias = "qpl_deflate_huffman_table_create")]
    pub deflate_huffman_table_create:
        unsafe extern "C" fn(TableType, Path, Allocator, *mut HuffmanTable) -> Status,

    /// `(table)`: frees the table.
    #[doc(alias = "qpl_huffman_table_destroy")]
    pub huffman_table_destroy: unsafe extern "C" fn(HuffmanTable) -> Status,

    /// `(table, histogram)`: fills a table with codes that fit the histogram, at most 15 bits long.
    ///
    /// Returns [`Status::NOT_SUPPORTED_MODE`] for a table for decompression alone, and a status
    /// from 500 on for a combined table of the hardware path without a device.
    #[doc(alias = "qpl_huffman_table_init_with_histogram")]
    pub huffman_table_init_with_histogram:
        unsafe extern "C" fn(HuffmanTable, *const Histogram) -> Status,

    get_library_version: unsafe extern "C" fn() -> *const c_char,
}

impl Library {
    /// Opens `libqpl.so.1` by the dynamic loader's rules, once; later calls return the same
    /// library. A failure is not remembered.
    ///
    /// The library stays open until the process ends: a device may still be writing for it, and its
    /// threads never end.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if it is not found, cannot be loaded, or lacks a function.
    pub fn open() -> Result<&'static Library, OpenError> {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        match LIBRARY.get() {
            Some(library) => Ok(library),
            None => {
                let library = load(SONAME)?;
                Ok(LIBRARY.get_or_init(|| library))
            }
        }
    }

    /// The library's version, for example `1.9.0`.
    #[doc(alias = "qpl_get_library_version")]
    pub fn version(&self) -> &'static CStr {
        // SAFETY: the function has no precondition.
        let version = unsafe { (self.get_library_version)() };
        // SAFETY: it returns a string constant of a library that is never unloaded.
        unsafe { CStr::from_ptr(version) }
    }
}

fn load(name: &'static str) -> Result<Library, OpenError> {
    // SAFETY: libqpl's initialisers are those of a C++ library and make no demands on the loading
    // program. The owner of the loader's search path vouches that the file of this name is libqpl,
    // as for every linked library.
    let opened = unsafe { libloading::Library::new(name) }
        .map_err(|source| Unusable::Load { name, source })?;

    macro_rules! function {
        ($symbol:literal) => {{
            // SAFETY: the field's type is the function's C prototype in the header, which has never
            // changed.
            let found = unsafe { opened.get($symbol) };
            *found.map_err(|source| Unusable::MissingSymbol {
                name,
                symbol: $symbol,
                source,
            })?
        }};
    }

    let library = Library {
        job_size: function!("qpl_get_job_size"),
        init_job: function!("qpl_init_job"),
        execute_job: function!("qpl_execute_job"),
        submit_job: function!("qpl_submit_job"),
        check_job: function!("qpl_check_job"),
        gather_deflate_statistics: function!("qpl_gather_deflate_statistics"),
        deflate_huffman_table_create: function!("qpl_deflate_huffman_table_create"),
        huffman_table_destroy: function!("qpl_huffman_table_destroy"),
        huffman_table_init_with_histogram: function!("qpl_huffman_table_init_with_histogram"),
        get_library_version: function!("qpl_get_library_version"),
    };
    // The functions outlive this handle only if the library is never closed.
    std::mem::forget(opened);
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::{Unusable, load};

    #[test]
    fn a_missing_library_is_named() {
        let error = load("libqpl-that-does-not-exist.so.1").unwrap_err();
        assert!(
            matches!(
                error.0,
                Unusable::Load {
                    name: "libqpl-that-does-not-exist.so.1",
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn a_library_without_the_functions_is_refused() {
        let error = load("libc.so.6").unwrap_err();
        assert!(
            matches!(
                error.0,
                Unusable::MissingSymbol {
                    symbol: "qpl_get_job_size",
                    ..
                }
            ),
            "{error:?}"
        );
    }
}
