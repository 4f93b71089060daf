//! The handle with which a program places the simulated machine under libqpl.

#![allow(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::counters::Counters;
use crate::settings::Settings;

/// The shared object, loaded into this process in place of libaccel-config.
///
/// Such a process has this crate's code twice: as the shared object, which is the machine, and as
/// the Rust library of this handle. They communicate through C functions.
#[derive(Debug)]
pub struct Simulator {
    configure: unsafe extern "C" fn(*const u8, usize) -> bool,
    counters: unsafe extern "C" fn(*mut Counters),
}

/// The simulated machine is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The shared object is not where Cargo puts it.
    #[error("libiaa_sim.so is neither beside the program nor in its folder deps")]
    Missing,
    /// The shared object cannot be loaded.
    #[error("{} cannot be loaded", path.display())]
    Load {
        /// Its path.
        path: PathBuf,
        /// The loader's message.
        source: libloading::Error,
    },
}

impl Simulator {
    /// Loads the shared object and configures it.
    ///
    /// Call this before libqpl's hardware path is used in the process: libqpl then looks for
    /// libaccel-config, once, and takes the library already loaded under that name.
    ///
    /// # Errors
    ///
    /// [`LoadError`] if there is no shared object or it cannot be loaded.
    pub fn load(settings: &Settings) -> Result<Simulator, LoadError> {
        let path = library_path().ok_or(LoadError::Missing)?;
        let load = || {
            // SAFETY: the shared object is this crate, and its initialisation is that of Rust's
            // standard library.
            let library = unsafe { libloading::Library::new(&path) }?;
            // SAFETY: the type is that of the function in `control`.
            let configure = *unsafe { library.get("iaa_sim_configure") }?;
            // SAFETY: the type is that of the function in `control`.
            let counters = *unsafe { library.get("iaa_sim_counters") }?;
            // The machine's threads run until the process ends.
            std::mem::forget(library);
            Ok(Simulator {
                configure,
                counters,
            })
        };
        let simulator = load().map_err(|source| LoadError::Load {
            path: path.clone(),
            source,
        })?;
        simulator.configure(settings);
        Ok(simulator)
    }

    /// Replaces the settings and resets the counters. Values already read by libqpl stay.
    ///
    /// # Panics
    ///
    /// If the shared object does not understand the settings: it is from another build.
    pub fn configure(&self, settings: &Settings) {
        let text = settings.to_string();
        // SAFETY: the text has the length that is passed.
        let understood = unsafe { (self.configure)(text.as_ptr(), text.len()) };
        assert!(understood, "libiaa_sim.so does not know: {text}");
    }

    /// The counters since the settings were made.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        // SAFETY: `counters` is writable, and has the type that the function in `control` writes.
        unsafe { (self.counters)(&mut counters) };
        counters
    }
}

/// The path of Cargo's shared object: for a test in its own folder `deps`, for a program in the one
/// below. For `LD_PRELOAD`, which gives another process the simulated machine.
pub fn library_path() -> Option<PathBuf> {
    let program = PathBuf::from(std::env::args_os().next()?);
    let folder = program.parent()?;
    [folder.to_owned(), folder.join("deps")]
        .iter()
        .map(|folder| folder.join(FILE_NAME))
        .find(|path| Path::is_file(path))
}

const FILE_NAME: &str = "libiaa_sim.so";
