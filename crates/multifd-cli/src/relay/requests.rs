//! A folder in which files ask for listening sockets, one for each guest.
//!
//! A relay beside the source cannot know which guests there will be. So an address like
//! `unix:/run/out/{name}.sock` is a rule and not a socket: an empty file `/run/out/vm1.sock` asks
//! for a socket in its place. Migrations that come to it have the name `vm1`. Listening ends when
//! the socket is removed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use multifd_relay::leg::{LegAddress, Name, NameFault, Protocol};
use multifd_transport::{Address, asks_for_socket};
use rustix::fs::{Access, access};

/// The placeholder for the guest's name.
const PLACEHOLDER: &[u8] = b"{name}";

/// The most files that one look lists. No folder of requests has more.
const MOST_FILES: usize = 1 << 16;

/// A folder in which files ask for listening sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requests {
    folder: PathBuf,
    /// The parts of a file's name before and after the guest's name.
    before: Vec<u8>,
    behind: Vec<u8>,
}

/// Why an address is no rule for requests, or its folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct RequestsError(#[from] Unusable);

#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// Only unix sockets with QEMU's own protocol can be asked for.
    #[error(
        "{address}: only a listening address unix:FOLDER/{{name}} has a name in it; a trunk brings \
         the names of its guests itself"
    )]
    NoUnixSocket {
        /// The address.
        address: String,
    },
    /// `{name}` does not stand once in the file's name.
    #[error("{address}: {{name}} must stand once, after the last `/`")]
    Place {
        /// The address.
        address: String,
    },
    /// No sockets can be made there.
    #[error(
        "cannot make sockets in {}; make the folder, and let this user write in it",
        multifd_transport::printable_path(folder)
    )]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The content of the folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// The guests that a socket is asked for.
    pub(super) asked: BTreeSet<Name>,
    /// Files that look like requests but are none, with the reasons.
    pub(super) odd: Vec<(OsString, Odd)>,
}

/// Why a file is no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Odd {
    /// It is not empty.
    #[error("is not empty; a request for a socket is an empty file")]
    NotEmpty,
    /// Its name has no valid name of a guest.
    #[error("is no request for a socket, for its name")]
    Name(#[source] NameFault),
}

/// The identity of a socket's file: its device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileNumber([u64; 2]);

impl FileNumber {
    /// The identity of the socket at `path`, if there is one. A plain file is none: it may have got
    /// the inode of a socket that was removed, and ask for the next one.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let file = fs::symlink_metadata(path).ok()?;
        let is_socket = file.file_type().is_socket();
        is_socket.then(|| Self([file.dev(), file.ino()]))
    }
}

impl Requests {
    /// The rule in a listening address with `{name}`.
    ///
    /// # Errors
    /// If `{name}` does not stand where it must.
    pub(super) fn of(leg: &LegAddress) -> Result<Self, RequestsError> {
        let address = leg.to_string();
        let (Protocol::Qemu, Address::Unix(path)) = (leg.protocol, &leg.address) else {
            return Err(Unusable::NoUnixSocket { address }.into());
        };
        let parts = (path.parent(), path.file_name());
        let (Some(folder), Some(file)) = parts else {
            return Err(Unusable::Place { address }.into());
        };
        let at = find(file.as_bytes());
        let (before, behind) = file.as_bytes().split_at(at.unwrap_or_default());
        let behind = behind.get(PLACEHOLDER.len()..).unwrap_or_default();
        let elsewhere = [before, behind, folder.as_os_str().as_bytes()];
        if at.is_none() || elsewhere.iter().any(|part| find(part).is_some()) {
            return Err(Unusable::Place { address }.into());
        }
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        Ok(Self {
            folder: folder.to_owned(),
            before: before.to_owned(),
            behind: behind.to_owned(),
        })
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of a guest's socket.
    pub(super) fn path(&self, name: &Name) -> PathBuf {
        let file = [&self.before[..], name.as_str().as_bytes(), &self.behind].concat();
        self.folder.join(OsString::from_vec(file))
    }

    /// Checks that sockets can be made in the folder.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn check(&self) -> Result<(), RequestsError> {
        let usable = fs::read_dir(&self.folder).and_then(|_| {
            access(&self.folder, Access::WRITE_OK | Access::EXEC_OK).map_err(io::Error::from)
        });
        Ok(usable.map_err(|source| Unusable::Folder {
            folder: self.folder.clone(),
            source,
        })?)
    }

    /// Looks at the folder, and leaves out guests whose sockets are served already.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(super) fn look(&self, is_served: &dyn Fn(&Name) -> bool) -> io::Result<Look> {
        let mut look = Look::default();
        for entry in fs::read_dir(&self.folder)?.take(MOST_FILES) {
            let file = entry?.file_name();
            let Some(name) = self.name_in(&file) else {
                continue;
            };
            let name = Name::new(name);
            if name.as_ref().is_ok_and(is_served) {
                continue;
            }
            let path = self.folder.join(&file);
            // A file that has been removed meanwhile asks for nothing.
            let Ok(found) = fs::symlink_metadata(&path) else {
                continue;
            };
            let is_socket = found.file_type().is_socket();
            if !found.is_file() && !is_socket {
                continue;
            }
            match name {
                Ok(name) if asks_for_socket(&path).unwrap_or_default() => {
                    look.asked.insert(name);
                }
                Ok(_) if !is_socket && found.len() > 0 => look.odd.push((file, Odd::NotEmpty)),
                Ok(_) => {}
                Err(fault) => look.odd.push((file, Odd::Name(fault))),
            }
        }
        Ok(look)
    }

    /// The guest's name in a file's name, if the file's name has the rule's form.
    fn name_in<'a>(&self, file: &'a OsStr) -> Option<&'a str> {
        let rest = file.as_bytes().strip_prefix(&self.before[..])?;
        let name = rest.strip_suffix(&self.behind[..])?;
        // Hidden files are no requests: the relay makes its own temporary files under such names.
        let is_hidden = file.as_bytes().starts_with(b".") && self.before.is_empty();
        std::str::from_utf8(name).ok().filter(|_| !is_hidden)
    }
}

fn find(bytes: &[u8]) -> Option<usize> {
    let mut windows = bytes.windows(PLACEHOLDER.len());
    windows.position(|window| window == PLACEHOLDER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn rule(text: &str) -> Result<Requests, RequestsError> {
        Requests::of(&text.parse().unwrap())
    }

    #[test]
    fn a_plain_file_is_no_socket_that_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm1.sock");
        fs::write(&path, "").unwrap();
        assert_eq!(FileNumber::of(&path), None);
        fs::remove_file(&path).unwrap();
        let _served = UnixListener::bind(&path).unwrap();
        assert!(FileNumber::of(&path).is_some());
    }

    #[test]
    fn the_name_stands_once_in_the_files_name() {
        let requests = rule("unix:/run/out/a-{name}.sock").unwrap();
        assert_eq!(requests.folder(), Path::new("/run/out"));
        let path = requests.path(&Name::new("vm1").unwrap());
        assert_eq!(path, Path::new("/run/out/a-vm1.sock"));
        assert_eq!(rule("unix:{name}").unwrap().folder(), Path::new("."));
        for text in [
            "unix:/run/{name}/a",
            "unix:/run/{name}/{name}",
            "unix:/run/{name}{name}",
        ] {
            let error = rule(text).unwrap_err();
            assert!(matches!(error.0, Unusable::Place { .. }), "{text}");
        }
        for text in ["trunk+unix:/run/{name}", "tcp:{name}:1", "trunk:{name}:1"] {
            let error = rule(text).unwrap_err();
            assert!(matches!(error.0, Unusable::NoUnixSocket { .. }), "{text}");
        }
    }

    #[test]
    fn only_an_empty_file_or_an_abandoned_socket_asks() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let rule = rule(&format!("unix:{}", at("{name}.sock").display())).unwrap();
        assert_eq!(rule.look(&|_| false).unwrap(), Look::default());
        for name in ["vm1.sock", "other", ".hidden.sock", "-x.sock", ".sock"] {
            fs::write(at(name), "").unwrap();
        }
        fs::write(at("full.sock"), "text").unwrap();
        fs::create_dir(at("folder.sock")).unwrap();
        std::os::unix::fs::symlink(at("vm1.sock"), at("link.sock")).unwrap();
        let _served = UnixListener::bind(at("served.sock")).unwrap();
        drop(UnixListener::bind(at("left.sock")).unwrap());
        let mut look = rule.look(&|_| false).unwrap();
        let asked: Vec<_> = look.asked.iter().map(Name::as_str).collect();
        assert_eq!(asked, ["left", "vm1"]);
        look.odd.sort_by(|a, b| a.0.cmp(&b.0));
        let odd: Vec<_> = look.odd.iter().map(|(file, _)| file.clone()).collect();
        assert_eq!(odd, ["-x.sock", "full.sock"]);
        rule.check().unwrap();
        drop(folder);
        assert!(rule.look(&|_| false).is_err() && rule.check().is_err());
    }
}
