//! A simulated Intel IAA.
//!
//! libqpl learns of devices from `libaccel-config.so.1`. If it cannot map a work queue's portal, it
//! writes its 64-byte descriptors to the queue's device node. This crate, built as a shared object,
//! replaces that library, presents devices whose nodes are pipes, and does their work in threads of
//! the same process: it reads the descriptors from the real libqpl and fills in completion records.
//! So all of libqpl's hardware path runs on a machine without the device, and all code of a program
//! for it, with any fault that a test injects.
//!
//! ## Use
//!
//! - In a test: [`Simulator::load`] before the first use of libqpl's hardware path. libqpl looks
//!   for devices once per process, so tests that need different machines call
//!   [`testing::in_own_process`].
//! - For another program: `LD_PRELOAD` with [`library_path`], and [`Settings`] as text in the
//!   environment variable [`VARIABLE`].
//!
//! No search path has to include the shared object: it has libaccel-config's soname, and a loaded
//! library is found by its soname. Only libqpl has to be found. If it is unpacked in a folder
//! `ROOT` beside a C library newer than the system's, programs are started through that one's
//! dynamic loader. Cargo does this for tests if configured so:
//!
//! ```text
//! LOADER=ROOT/usr/lib64/ld-linux-x86-64.so.2
//! LIBRARIES=ROOT/usr/lib/x86_64-linux-gnu
//! export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$LOADER --library-path $LIBRARIES"
//! cargo test -p iaa-sim
//! ```
//!
//! and a test does it for other programs with [`testing::launch`]. Tests without libqpl report so
//! by name, and fail if `CI=true`.
//!
//! ## Not simulated
//!
//! Submission by ENQCMD to a mapped portal; streams over several jobs; mini-block indexes;
//! Huffman-only and big-endian streams; CRC-32C; filters and CRC64; the second generation's header
//! generation and dictionaries; the timing of page requests. A descriptor for one of these is
//! refused with the record that a device uses for an unknown operation.

#![deny(unsafe_code)]

mod accel_config;
mod control;
mod counters;
mod deflate;
mod descriptor;
mod engine;
mod machine;
mod memory;
mod queue;
pub mod settings;
mod simulator;
pub mod testing;

pub use counters::Counters;
pub use settings::{Settings, VARIABLE};
pub use simulator::{LoadError, Simulator, library_path};
