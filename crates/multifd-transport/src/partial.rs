//! Files that have their names only once they are whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// What a file is called, after its own name, until it is whole.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// Why a file could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// There is such a file, which is not overwritten.
    #[error("{} is there already: remove it, or choose another name", path.display())]
    Occupied {
        /// The file that is in the way.
        path: PathBuf,
    },
    /// The system cannot.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A file which is called `NAME.partial` until it is kept. Dropped before that, it is removed.
#[derive(Debug)]
pub(crate) struct PartialFile {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    stays: AtomicBool,
}

impl PartialFile {
    /// Makes an empty file that will be called `path`.
    ///
    /// # Errors
    ///
    /// `Occupied` when there is a file of either name.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        if path.symlink_metadata().is_ok() {
            return Err(FileError::Occupied {
                path: path.to_owned(),
            });
        }
        let mut partial = OsString::from(path);
        partial.push(PARTIAL_SUFFIX);
        let partial = PathBuf::from(partial);
        match File::create_new(&partial) {
            Ok(file) => Ok(Self {
                file,
                partial,
                path: path.to_owned(),
                stays: AtomicBool::new(false),
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(FileError::Occupied { path: partial })
            }
            Err(source) => Err(FileError::Io {
                path: partial,
                source,
            }),
        }
    }

    /// The file itself.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What the file will be called.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Brings the contents to the disk.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(|source| self.failed(source))
    }

    /// From now on the file is not removed, whole or not.
    pub(crate) fn stay(&self) {
        self.stays.store(true, Ordering::Release);
    }

    /// Gives the file its name, which must still be free.
    pub(crate) fn publish(&self) -> Result<(), FileError> {
        self.rename().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => FileError::Occupied {
                path: self.path.clone(),
            },
            _ => FileError::Io {
                path: self.path.clone(),
                source,
            },
        })?;
        self.stay();
        Ok(())
    }

    /// An error of the file's, with its name.
    pub(crate) fn failed(&self, source: io::Error) -> FileError {
        FileError::Io {
            path: self.partial.clone(),
            source,
        }
    }

    fn rename(&self) -> io::Result<()> {
        match renameat_with(CWD, &self.partial, CWD, &self.path, RenameFlags::NOREPLACE) {
            // A file system without this flag (NFS is one) leaves a moment in which another's new file is replaced.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                fs::rename(&self.partial, &self.path)?
            }
            other => other?,
        }
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.stays.load(Ordering::Acquire) {
            // The failure is told; that the file is gone already, or stays, adds nothing to it.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_has_its_name_once_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let partial = PartialFile::create(&path).unwrap();
        partial.file().write_all(b"x").unwrap();
        assert!(!path.exists() && dir.path().join("f.partial").exists());
        partial.sync().unwrap();
        partial.publish().unwrap();
        drop(partial);
        assert!(!dir.path().join("f.partial").exists());
        assert_eq!(fs::read(&path).unwrap(), b"x");
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
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for name in ["f", "f.partial"] {
            fs::write(dir.path().join(name), "mine").unwrap();
            assert!(matches!(
                PartialFile::create(&path),
                Err(FileError::Occupied { .. })
            ));
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        let partial = PartialFile::create(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(matches!(partial.publish(), Err(FileError::Occupied { .. })));
        drop(partial);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
