//! Facts that come from trying: libraries to load, nodes to open.

use std::error::Error;
use std::ffi::{CStr, c_char};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::facts::{AccelConfig, NodeAccess, Portal, Qpl};

/// Operations that detection has to try. [`System`] tries them; tests substitute their own answers.
pub(crate) trait Host {
    /// Opens libqpl.
    fn qpl(&self) -> Qpl;

    /// Opens libaccel-config.
    fn accel_config(&self) -> AccelConfig;

    /// Opens the node of an enabled, shared work queue and maps its portal. Releases both at once
    /// and submits nothing.
    fn node(&self, path: &Path) -> NodeAccess;
}

/// This machine and this process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct System;

impl Host for System {
    fn qpl(&self) -> Qpl {
        match qpl_version() {
            Ok(version) => Qpl::Loaded { version },
            Err(error) => Qpl::Missing {
                error: innermost(&error),
            },
        }
    }

    fn accel_config(&self) -> AccelConfig {
        match accel_config_knows_iaa_cap() {
            Ok(iaa_cap) => AccelConfig::Loaded { iaa_cap },
            Err(error) => AccelConfig::Missing {
                error: innermost(&error),
            },
        }
    }

    fn node(&self, path: &Path) -> NodeAccess {
        let open = || {
            if !fs::metadata(path)?.file_type().is_char_device() {
                return Ok(NodeAccess::NotADevice);
            }
            let node = OpenOptions::new().read(true).write(true).open(path)?;
            let portal = match map_portal(&node) {
                Ok(()) => Portal::Mapped,
                Err(error) => Portal::Refused {
                    error: error.to_string(),
                },
            };
            Ok(NodeAccess::Opened { portal })
        };
        open().unwrap_or_else(|error: io::Error| match error.kind() {
            ErrorKind::NotFound => NodeAccess::Missing,
            ErrorKind::PermissionDenied => NodeAccess::Denied,
            _ => NodeAccess::Failed {
                error: error.to_string(),
            },
        })
    }
}

/// The loader's own message, from below Rust's wrapper.
fn innermost(mut error: &dyn Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Opens libqpl, verifies that it has the functions of every release, and returns its version.
#[allow(unsafe_code)]
fn qpl_version() -> Result<String, libloading::Error> {
    // SAFETY: libqpl's initialisers are those of a C++ library and make no demands on the loading
    // program. The loader's search path selects the file, as for every linked library.
    let library = unsafe { libloading::Library::new("libqpl.so.1") }?;
    for function in QPL_FUNCTIONS {
        // SAFETY: the symbol is never called, so its type does not matter; the code only tests its
        // presence.
        unsafe { library.get::<unsafe extern "C" fn()>(function) }?;
    }
    // SAFETY: this is the function's C prototype in the header, which no release has changed.
    let version = unsafe { library.get::<unsafe extern "C" fn() -> *const c_char>(QPL_VERSION) }?;
    // SAFETY: the function has no precondition.
    let version = unsafe { version() };
    // SAFETY: it returns a string constant of the library, which is open.
    let version = unsafe { CStr::from_ptr(version) };
    let version = version.to_string_lossy().into_owned();
    // The program may use libqpl too, and its threads never end: the library stays open.
    std::mem::forget(library);
    Ok(version)
}

/// Returns whether libaccel-config has the one function that libqpl requires for devices of the
/// second generation.
#[allow(unsafe_code)]
fn accel_config_knows_iaa_cap() -> Result<bool, libloading::Error> {
    // SAFETY: libqpl loads the same file by the same rules for its hardware path. The library's
    // initialisers make no demands on the loading program.
    let library = unsafe { libloading::Library::new("libaccel-config.so.1") }?;
    // SAFETY: the symbol is never called, so its type does not matter; the code only tests its
    // presence.
    let symbol = unsafe { library.get::<unsafe extern "C" fn()>("accfg_device_get_iaa_cap") };
    Ok(symbol.is_ok())
}

/// Maps a queue's portal as libqpl does, and unmaps it.
#[allow(unsafe_code)]
fn map_portal(node: &fs::File) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    // SAFETY: a new mapping at an address of the kernel's choice affects no other mapping, and only
    // this function knows the address.
    let portal = unsafe {
        mmap(
            std::ptr::null_mut(),
            PORTAL_BYTES,
            ProtFlags::WRITE,
            MapFlags::SHARED,
            node,
            0,
        )
    }?;
    // SAFETY: these bytes were just mapped, and no reference to them exists.
    unsafe { munmap(portal, PORTAL_BYTES) }?;
    Ok(())
}

const QPL_VERSION: &str = "qpl_get_library_version";
/// The functions for jobs and tables. Every release has them.
const QPL_FUNCTIONS: [&str; 15] = [
    "qpl_get_job_size",
    "qpl_init_job",
    "qpl_execute_job",
    "qpl_submit_job",
    "qpl_check_job",
    "qpl_wait_job",
    "qpl_fini_job",
    "qpl_gather_deflate_statistics",
    "qpl_deflate_huffman_table_create",
    "qpl_huffman_table_destroy",
    "qpl_huffman_table_init_with_histogram",
    "qpl_huffman_table_init_with_other",
    "qpl_huffman_table_get_type",
    "qpl_huffman_table_serialize",
    "qpl_huffman_table_deserialize",
];

/// A portal is one page of the processor, which is 4 KiB on every machine with an IAA.
const PORTAL_BYTES: usize = 4096;
