//! Files that have their names only once they are whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use multifd_transport::cleanup::{self, Temporary};
use multifd_transport::printable_path;

/// Guest memory is its owner's alone, whatever the umask.
const MODE: u32 = 0o600;

/// The suffix of an incomplete file.
pub(crate) const PARTIAL_SUFFIX: &str = ".partial";

/// Why a file could not be made.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FileError(#[from] pub(crate) FileFault);

#[derive(Debug, thiserror::Error)]
pub(crate) enum FileFault {
    /// There is such a file, which is not overwritten.
    #[error(
        "{} is there already: remove it, or choose another name",
        printable_path(path)
    )]
    Occupied {
        /// The file that is in the way.
        path: PathBuf,
    },
    /// An earlier run was killed while it wrote the file.
    #[error(
        "{0} is left of a run that was killed, and is not whole: remove it (rm '{0}'), or choose another name",
        printable_path(path)
    )]
    Abandoned {
        /// The unfinished file.
        path: PathBuf,
    },
    /// Another process writes the file at the moment.
    #[error(
        "{} is being written by another process: wait for its end, or choose another name",
        printable_path(path)
    )]
    Busy {
        /// The unfinished file.
        path: PathBuf,
    },
    /// The system cannot.
    #[error("cannot write {}", printable_path(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Makes a file with these contents, whole or not at all. Its owner alone may read it.
///
/// # Errors
///
/// When there is a file of that name, or the system cannot write it.
pub fn write_new(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let partial = PartialFile::create(path)?;
    let written = partial.file().write_all(contents);
    written.map_err(|source| partial.failed(source))?;
    partial.sync()?;
    partial.publish()
}

/// A file which is called `NAME.partial` until it is kept. Dropped before that, it is removed.
#[derive(Debug)]
pub(crate) struct PartialFile {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    temporary: Temporary,
    is_kept: AtomicBool,
}

impl Drop for PartialFile {
    /// A file whose folder has another name by now is not found there, and stays.
    fn drop(&mut self) {
        if self.is_kept.load(Ordering::Relaxed) || self.is_at(&self.partial) {
            return;
        }
        let is_there = self.file.metadata().is_ok_and(|file| file.nlink() > 0);
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        if let (true, Ok(path)) = (is_there, fs::read_link(link)) {
            cleanup::stays(path);
        }
    }
}

impl PartialFile {
    /// Makes an empty file that will be called `path`.
    ///
    /// # Errors
    ///
    /// When there is a file of either name.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        if path.symlink_metadata().is_ok() {
            let path = path.to_owned();
            return Err(FileFault::Occupied { path }.into());
        }
        let mut partial = OsString::from(path);
        partial.push(PARTIAL_SUFFIX);
        let partial = PathBuf::from(partial);
        let made = Temporary::make(&partial, || {
            let mut options = File::options();
            options.write(true).create_new(true).mode(MODE);
            options.open(&partial)
        });
        match made {
            Ok((file, temporary)) => {
                let made = Self {
                    file,
                    partial,
                    path: path.to_owned(),
                    temporary,
                    is_kept: AtomicBool::new(false),
                };
                made.claim().map_err(|source| made.failed(source))?;
                Ok(made)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let fault = if is_claimed(&partial) {
                    FileFault::Busy { path: partial }
                } else {
                    FileFault::Abandoned { path: partial }
                };
                Err(fault.into())
            }
            Err(source) => Err(FileFault::Io {
                path: partial,
                source,
            }
            .into()),
        }
    }

    /// Shows other processes, by a lock, that the file is being written, and gives it its mode if
    /// the umask took some of that away.
    fn claim(&self) -> io::Result<()> {
        // A file system without locks only makes what is said about a file that is in the way less
        // exact.
        let _ = flock(&self.file, FlockOperation::NonBlockingLockExclusive);
        if self.file.metadata()?.permissions().mode() & 0o777 != MODE {
            self.file
                .set_permissions(fs::Permissions::from_mode(MODE))?;
        }
        Ok(())
    }

    /// The file itself.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The file's final name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Brings the contents to the disk.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(|source| self.failed(source))
    }

    /// From now on the file is not removed, whole or not.
    pub(crate) fn stay(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
        self.temporary.keep();
    }

    /// Gives the file its name, which must still be free. After an error the file is gone.
    pub(crate) fn publish(&self) -> Result<(), FileError> {
        self.name()?;
        self.sync_name().inspect_err(|_| self.withdraw())
    }

    /// The same, but the name may not be on the disk before [`sync_name`](Self::sync_name).
    pub(crate) fn name(&self) -> Result<(), FileError> {
        self.rename().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => FileFault::Occupied {
                path: self.path.clone(),
            },
            _ => FileFault::Io {
                path: self.path.clone(),
                source,
            },
        })?;
        self.stay();
        Ok(())
    }

    /// Brings the names of all files of the folder to the disk.
    pub(crate) fn sync_name(&self) -> Result<(), FileError> {
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(synced.map_err(|source| FileFault::Io {
            path: self.path.clone(),
            source,
        })?)
    }

    /// Removes the file again, under its present name: no process relies on it. A file of another
    /// process stays.
    pub(crate) fn withdraw(&self) {
        for path in [&self.path, &self.partial] {
            if self.is_at(path) && fs::remove_file(path).is_err() {
                cleanup::stays(path.clone());
            }
        }
    }

    /// Whether it is this file that has the name.
    fn is_at(&self, path: &Path) -> bool {
        let ours = self.file.metadata().map(|ours| (ours.dev(), ours.ino()));
        let there = path
            .symlink_metadata()
            .map(|there| (there.dev(), there.ino()));
        matches!((&ours, &there), (Ok(ours), Ok(there)) if ours == there)
    }

    /// An error of the file's, with its name.
    pub(crate) fn failed(&self, source: io::Error) -> FileError {
        let path = self.partial.clone();
        FileFault::Io { path, source }.into()
    }

    fn rename(&self) -> io::Result<()> {
        match renameat_with(CWD, &self.partial, CWD, &self.path, RenameFlags::NOREPLACE) {
            // A file system without this flag (NFS is one) leaves a moment in which another's new
            // file is replaced.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                fs::rename(&self.partial, &self.path)?
            }
            other => other?,
        }
        Ok(())
    }
}

/// Whether a process writes this unfinished file.
fn is_claimed(partial: &Path) -> bool {
    File::open(partial).is_ok_and(|file| {
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_once_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let partial = PartialFile::create(&path).unwrap();
        partial.file().write_all(b"x").unwrap();
        assert!(!path.exists() && dir.path().join("f.partial").exists());
        let mode = partial.file().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        partial.sync().unwrap();
        partial.publish().unwrap();
        drop(partial);
        assert!(!dir.path().join("f.partial").exists());
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_new(&path, b"x").unwrap();
        let again = write_new(&path, b"y").unwrap_err();
        assert!(matches!(again.0, FileFault::Occupied { .. }), "{again}");
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let nowhere = write_new(&dir.path().join("no/f"), b"x").unwrap_err();
        assert!(matches!(nowhere.0, FileFault::Io { .. }), "{nowhere}");
    }

    #[test]
    fn a_file_that_never_becomes_whole_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        drop(PartialFile::create(&dir.path().join("f")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let staying = PartialFile::create(&dir.path().join("f")).unwrap();
        staying.stay();
        drop(staying);
        assert!(dir.path().join("f.partial").exists());
    }

    #[test]
    fn a_file_whose_folder_was_renamed_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let [folder, renamed] = ["a", "b"].map(|name| dir.path().join(name));
        fs::create_dir(&folder).unwrap();
        let partial = PartialFile::create(&folder.join("f")).unwrap();
        fs::rename(&folder, &renamed).unwrap();
        drop(partial);
        assert!(cleanup::stayed().contains(&renamed.join("f.partial")));
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let refused = || PartialFile::create(&path).unwrap_err();
        fs::write(&path, "mine").unwrap();
        assert!(matches!(refused().0, FileFault::Occupied { .. }));
        fs::remove_file(&path).unwrap();
        let left = dir.path().join("f.partial");
        fs::write(&left, "mine").unwrap();
        let error = refused();
        assert!(matches!(error.0, FileFault::Abandoned { .. }), "{error}");
        let remedy = format!("rm '{}'", left.display());
        assert!(error.to_string().contains(&remedy), "{error}");
        assert_eq!(fs::read(&left).unwrap(), b"mine");
        fs::remove_file(&left).unwrap();
        let partial = PartialFile::create(&path).unwrap();
        let error = refused();
        assert!(matches!(error.0, FileFault::Busy { .. }), "{error}");
        assert!(left.exists());
        fs::write(&path, "mine").unwrap();
        assert!(matches!(
            partial.publish(),
            Err(FileError(FileFault::Occupied { .. }))
        ));
        drop(partial);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
