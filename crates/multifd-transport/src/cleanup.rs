//! Files that must not outlive the process: sockets, and files that are not whole yet.
//!
//! Dropping a [`crate::Listener`] or an unfinished file removes it. A process that is told to end
//! at once drops nothing, so all such files are also listed here, and [`exit`] removes them.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::sleep;
use std::time::Duration;

/// Time limit in [`exit`] for a file that is being made at the moment, on a file system that does
/// not answer.
const MOST_WAIT: Duration = Duration::from_secs(2);

const PAUSE: Duration = Duration::from_millis(10);

/// All files that go when the process does. Those that are made are listed before the lock is
/// released.
static FILES: Mutex<Vec<Listed>> = Mutex::new(Vec::new());

/// Files that were to go and could not be removed.
static STAYED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Incomplete files that could not be removed; a person has to.
pub fn stayed() -> Vec<PathBuf> {
    let stayed = STAYED.lock().unwrap_or_else(PoisonError::into_inner);
    stayed.clone()
}

/// Notes an incomplete file that could not be removed.
pub fn stays(path: PathBuf) {
    let mut stayed = STAYED.lock().unwrap_or_else(PoisonError::into_inner);
    if !stayed.contains(&path) {
        stayed.push(path);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    path: PathBuf,
    file: Identity,
}

/// A file's identity, under any name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

impl Listed {
    /// Removes the file, unless another one has its name by now.
    fn remove(&self) {
        let now = fs::symlink_metadata(&self.path);
        let is_ours = now.is_ok_and(|now| Identity::of(&now) == self.file);
        if is_ours && fs::remove_file(&self.path).is_err() {
            stays(self.path.clone());
        }
    }
}

/// A file of this process. Dropped, the file is removed, unless it was [kept](Self::keep).
#[derive(Debug)]
pub struct Temporary(Listed);

impl Temporary {
    /// Lets `make` make the file `path`, and takes charge of it.
    pub fn make<T>(
        path: &Path,
        make: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<(T, Temporary)> {
        let mut files = lock();
        let made = make()?;
        let listed = Listed {
            path: path.to_owned(),
            file: Identity::of(&fs::symlink_metadata(path)?),
        };
        files.push(listed.clone());
        Ok((made, Temporary(listed)))
    }

    /// The file's identity.
    pub(crate) fn identity(&self) -> Identity {
        self.0.file
    }

    /// Gives the file another name, in the place of what has it.
    ///
    /// # Errors
    /// When the system does not; the file has its old name then.
    pub(crate) fn rename(&mut self, to: &Path) -> io::Result<()> {
        let mut files = lock();
        fs::rename(&self.0.path, to)?;
        if let Some(listed) = files.iter_mut().find(|listed| **listed == self.0) {
            listed.path = to.to_owned();
        }
        self.0.path = to.to_owned();
        Ok(())
    }

    /// From now on the file is not removed.
    pub fn keep(&self) {
        lock().retain(|listed| *listed != self.0);
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut files = lock();
        if let Some(index) = files.iter().position(|listed| *listed == self.0) {
            files.swap_remove(index).remove();
        }
    }
}

/// Ends the process at once with `status`. No socket stays behind, and no file that is not whole.
pub fn exit(status: i32) -> ! {
    let mut waited = Duration::ZERO;
    // Held until the end, so that no further file is made.
    let files = loop {
        match FILES.try_lock() {
            Ok(files) => break Some(files),
            Err(TryLockError::Poisoned(poisoned)) => break Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if waited >= MOST_WAIT => break None,
            Err(TryLockError::WouldBlock) => {
                sleep(PAUSE);
                waited += PAUSE;
            }
        }
    };
    for listed in files.iter().flat_map(|files| files.iter()) {
        listed.remove();
    }
    std::process::exit(status)
}

fn lock() -> MutexGuard<'static, Vec<Listed>> {
    // The list is whole whenever the lock is released.
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(path: &Path) -> Temporary {
        Temporary::make(path, || fs::write(path, "mine")).unwrap().1
    }

    #[test]
    fn a_file_goes_unless_it_is_kept_or_is_anothers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let is_listed = |path: &Path| lock().iter().any(|listed| listed.path == path);

        let file = make(&path);
        assert!(is_listed(&path));
        drop(file);
        assert!(!path.exists() && !is_listed(&path));

        let kept = make(&path);
        kept.keep();
        assert!(!is_listed(&path));
        drop(kept);
        assert!(path.exists());

        fs::remove_file(&path).unwrap();
        let replaced = make(&path);
        // Made while the first one is there still, so that it is no other by its number either.
        let other = folder.path().join("other");
        fs::write(&other, "another's").unwrap();
        fs::rename(&other, &path).unwrap();
        drop(replaced);
        assert_eq!(fs::read(&path).unwrap(), b"another's");
    }

    #[test]
    fn a_file_that_cannot_be_made_is_not_listed() {
        let missing = Path::new("/no/such/folder/f");
        assert!(Temporary::make(missing, || fs::write(missing, "")).is_err());
        assert!(lock().iter().all(|listed| listed.path != missing));
    }
}
