//! An Intel IAA that is not there.
//!
//! libqpl learns of devices from `libaccel-config.so.1`, and where it cannot map a work queue's
//! portal it writes its 64-byte descriptors to the queue's device node. This crate, built as a
//! shared object, stands in for that library, presents devices whose nodes are pipes, and does
//! their work in threads of the same process: it takes the descriptors which the real libqpl writes
//! and fills in completion records. So all of libqpl's hardware path runs, and all that a program
//! has to do about it: on a machine without the device, and with whatever goes wrong that a test
//! wants.
//!
//! ## Use
//!
//! - In a test: [`Simulator::load`] before the first use of libqpl's hardware path. libqpl looks
//!   for devices once per process, so tests which want different machines call
//!   [`testing::in_own_process`].
//! - For another program: `LD_PRELOAD` with [`library_path`], and [`Settings`] as text in the
//!   environment variable [`VARIABLE`].
//!
//! No search path has to lead to the shared object: it carries libaccel-config's soname, and a
//! library which is already loaded answers to that. Only libqpl has to be found. Where it is
//! unpacked in a folder `ROOT` beside a C library newer than the system's, programs are started
//! through that one's dynamic loader, which Cargo does for tests when told so:
//!
//! ```text
//! LOADER=ROOT/usr/lib64/ld-linux-x86-64.so.2
//! LIBRARIES=ROOT/usr/lib/x86_64-linux-gnu
//! export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$LOADER --library-path $LIBRARIES"
//! cargo test -p iaa-sim
//! ```
//!
//! and a test does for other programs with [`testing::launch`]. Tests which miss libqpl say so by
//! name, and fail where `CI=true`.
//!
//! ## What is not simulated
//!
//! Submission by ENQCMD to a mapped portal; streams over several jobs; mini-block indexes;
//! Huffman-only and big-endian streams; CRC-32C; filters and CRC64; the second generation's header
//! generation and dictionaries; the timing of page requests. A descriptor which asks for such a
//! thing is refused with the record by which a device refuses what it does not know.

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
