//! The private folder of the socket between a QEMU and the relay beside it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use rustix::process::getuid;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::failure::{Cause, Failure};
use crate::news::News;

/// The number of names to try.
const TRIES: usize = 8;

/// The longest path of the folder above: a socket's path has 107 bytes at most (unix(7)).
const LONGEST_PARENT: usize = 107 - "/multifd-00000000/qemu".len();

/// A folder of mode 0700 in another one. Dropped, it is removed with the socket in it.
#[derive(Debug)]
pub(crate) struct PrivateFolder {
    path: PathBuf,
    /// QEMU's user, if it is another one than this process's.
    other_user: Option<u32>,
}

impl PrivateFolder {
    /// Makes a folder in `asked`; or beside the monitor at `qmp`, where QEMU certainly comes, or
    /// else in the folder for temporary files. `user` is QEMU's, if the system says it.
    pub(crate) fn beside(
        qmp: &Path,
        asked: Option<&Path>,
        user: io::Result<u32>,
        observe: &mut dyn FnMut(News),
    ) -> Result<Self, Failure> {
        let own = getuid().as_raw();
        let user = user.unwrap_or(own);
        if user != own && own != 0 {
            observe(News::Note(format!(
                "QEMU's monitor belongs to user {user}, and this command runs as user {own}. Both need \
                 one socket: if QEMU may not use it, run this command as QEMU's user"
            )));
        }
        // Only root can give a file away.
        let user = if own == 0 { user } else { own };
        let failed = |parent: &Path, source| {
            Failure::before(Cause::Folder {
                parent: parent.to_owned(),
                source,
            })
        };
        if let Some(parent) = asked {
            return Self::make(parent, user).map_err(|source| failed(parent, source));
        }
        let beside = qmp
            .parent()
            .filter(|parent| parent.is_absolute() && parent.as_os_str().len() <= LONGEST_PARENT);
        if let Some(Ok(folder)) = beside.map(|parent| Self::make(parent, user)) {
            return Ok(folder);
        }
        let parent = std::env::temp_dir();
        Self::make(&parent, user).map_err(|source| failed(&parent, source))
    }

    /// Makes a folder in `parent` which `user` can use too.
    fn make(parent: &Path, user: u32) -> io::Result<Self> {
        let other_user = (getuid().as_raw() != user).then_some(user);
        let mut outcome = Err(io::ErrorKind::AlreadyExists.into());
        for _ in 0..TRIES {
            let path = parent.join(name()?);
            outcome = DirBuilder::new().mode(0o700).create(&path);
            match &outcome {
                Ok(()) => {
                    let folder = Self { path, other_user };
                    folder.give(&folder.path)?;
                    return Ok(folder);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(_) => break,
            }
        }
        outcome.and(Err(io::ErrorKind::AlreadyExists.into()))
    }

    /// The path of the socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("qemu")
    }

    /// Gives a file to QEMU's user.
    pub(crate) fn give(&self, path: &Path) -> io::Result<()> {
        match self.other_user {
            Some(user) => chown(path, Some(user), None),
            None => Ok(()),
        }
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        // Either may be gone already. A rest is empty and our own.
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_dir(&self.path);
    }
}

fn name() -> io::Result<String> {
    let mut number = [0; 4];
    getrandom(&mut number[..], GetRandomFlags::empty())?;
    Ok(format!("multifd-{:08x}", u32::from_ne_bytes(number)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_its_users_alone_and_goes() {
        let parent = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::make(parent.path(), getuid().as_raw()).unwrap();
        let mode = fs::metadata(&folder.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(folder.socket(), "").unwrap();
        drop(folder);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        let nowhere = PrivateFolder::make(&parent.path().join("none"), 0);
        assert_eq!(nowhere.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
