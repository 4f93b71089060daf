//! `multifd-bench guest`: a guest's process, started by `multifd-bench send`.

use std::fs::File;
use std::io;
use std::process::ExitCode;

use crate::guests::{Ram, serve};
use multifd_cli::process::Outcome;
use multifd_cli::{say, signals};
use multifd_engine::dirty::WriteTracking;
use multifd_engine::memory::Mapping;

/// Serves orders on standard input. `program` is this program's name.
pub(super) fn run(program: &'static str) -> ExitCode {
    say::set_program(program);
    match serve_orders() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say::note(say::chain(failure.as_ref()));
            say::last_words();
            ExitCode::FAILURE
        }
    }
}

fn serve_orders() -> Outcome {
    signals::leave_to_parent()?;
    Ok(serve(
        &mut io::stdin().lock(),
        &mut io::stdout(),
        Mapped::make,
    )?)
}

/// A memfd whose mapping the migrating process can track.
struct Mapped {
    mapping: Mapping,
    _tracking: WriteTracking,
}

impl Mapped {
    fn make(bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let mapping = Mapping::memfd("multifd-guest", bytes)?;
        // The other process needs the reason as text.
        let tracking = WriteTracking::register(&[mapping.range()])
            .map_err(|error| io::Error::other(say::chain(&error)))?;
        Ok(Self {
            mapping,
            _tracking: tracking,
        })
    }
}

impl Ram for Mapped {
    fn file(&self) -> &File {
        self.mapping.file()
    }

    fn address(&self) -> u64 {
        self.mapping.range().addresses().start
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.mapping.range().write(offset, bytes);
        written.map_err(io::Error::other)
    }
}
