//! Pages like a guest's, generated or from a file, and the share of zero pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use multifd_codec::is_zero;
use multifd_wire::PageSize;
use rustix::fs::{MemfdFlags, memfd_create};

use super::rates::Sample;
use crate::guests::{Kind, Spec, fill_memory};

/// A sample of pages, and the share of nonzero pages.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The sample.
    pub sample: Sample,
    /// The share of nonzero pages, from 0 to 1.
    pub used: f64,
}

/// Why no pages could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PagesError {
    /// A file cannot be read, or a guest's memory cannot be generated.
    #[error("cannot read pages from {name}")]
    Read {
        /// The file, or the kind of guest.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// All pages are zero, or there are none.
    #[error("{name} has no page that is not zero, so no method can be measured with it")]
    NoPages {
        /// The file.
        name: String,
    },
}

/// Makes pages like those of an `idle` or a `redis` guest, or reads a file with pages of 4 KiB back
/// to back.
///
/// # Errors
///
/// See [`PagesError`].
pub(crate) fn source(name: &str) -> Result<Source, PagesError> {
    let read = |source| PagesError::Read {
        name: name.to_owned(),
        source,
    };
    let file = match name {
        "idle" => generated(Kind::Idle, IDLE_BYTES),
        "redis" => generated(Kind::Redis, REDIS_BYTES),
        file => File::open(Path::new(file)),
    };
    let file = file.map_err(read)?;
    sampled(&file)
        .map_err(read)?
        .ok_or_else(|| PagesError::NoPages {
            name: name.to_owned(),
        })
}

fn generated(kind: Kind, bytes: u64) -> io::Result<File> {
    let memory = File::from(memfd_create("multifd-plan", MemfdFlags::CLOEXEC)?);
    memory.set_len(bytes)?;
    fill_memory(&memory, &Spec::new(kind, bytes))?;
    Ok(memory)
}

/// Reads runs of pages, spread evenly over the file.
fn sampled(file: &File) -> io::Result<Option<Source>> {
    let pages = file.metadata()?.len() / PageSize::K4.bytes() as u64;
    let runs = pages / RUN_PAGES;
    let step = (runs / MOST_RUNS).max(1);
    let (mut seen, mut used, mut bytes) = (0_u64, 0_u64, Vec::new());
    let mut run = vec![0; RUN_PAGES as usize * PageSize::K4.bytes()];
    for number in (0..runs.max(1)).step_by(step as usize) {
        let len = (pages.min(RUN_PAGES) as usize) * PageSize::K4.bytes();
        let run = run.get_mut(..len).unwrap_or_default();
        file.read_exact_at(run, number * RUN_PAGES * PageSize::K4.bytes() as u64)?;
        for page in run.chunks_exact(PageSize::K4.bytes()) {
            seen += 1;
            if !is_zero(page) {
                used += 1;
                bytes.extend_from_slice(page);
            }
        }
    }
    let share = used as f64 / seen.max(1) as f64;
    Ok(
        Sample::new(thinned(bytes), PageSize::K4).map(|sample| Source {
            sample,
            used: share,
        }),
    )
}

/// Chooses as many runs as a measurement needs, spread evenly.
fn thinned(bytes: Vec<u8>) -> Vec<u8> {
    let run = RUN_PAGES as usize * PageSize::K4.bytes();
    let runs = bytes.len() / run;
    if runs <= SAMPLE_RUNS {
        return bytes;
    }
    let chosen = (0..SAMPLE_RUNS).filter_map(|number| {
        let at = number * runs / SAMPLE_RUNS * run;
        bytes.get(at..at + run)
    });
    chosen.flatten().copied().collect()
}

/// At these sizes about 8000 pages are nonzero.
const IDLE_BYTES: u64 = 160 << 20;
const REDIS_BYTES: u64 = 96 << 20;
/// Pages are read in runs, because neighbours have more in common than other pages.
const RUN_PAGES: u64 = 32;
/// The most runs that are read: half a gigabyte.
const MOST_RUNS: u64 = 4096;
/// The most runs of a sample: 16 MiB.
const SAMPLE_RUNS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn generated_guests_have_their_share_of_nonzero_pages() {
        let idle = source("idle").unwrap();
        assert!((0.15..0.25).contains(&idle.used), "{}", idle.used);
        let redis = source("redis").unwrap();
        assert!((0.30..0.35).contains(&redis.used), "{}", redis.used);
        assert!(redis.sample.pages() > 3500);
    }

    #[test]
    fn files_with_nonzero_pages_are_read_and_others_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let name = file.path().display().to_string();
        let error = |name| source(name).unwrap_err().to_string();
        assert!(error(&name).contains("no page that is not zero"));
        file.write_all(&[[7; 4096].as_slice(), &[0; 3 * 4096]].concat())
            .unwrap();
        let found = source(&name).unwrap();
        assert_eq!((found.sample.pages(), found.used), (1, 0.25));
        assert!(error("/no/such/file").contains("cannot read pages"));
        assert!(error("/").contains("cannot read pages"));
    }
}
