//! Reading small files of a tree which may be anything: nothing here fails, waits or reads without
//! bound.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::facts::{Oddity, Problem};

/// A file tree as it is read, and what was odd about it so far.
pub(super) struct Tree<'a> {
    root: &'a Path,
    oddities: Vec<Oddity>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path) -> Tree<'a> {
        Tree {
            root,
            oddities: Vec::new(),
        }
    }

    pub(super) fn into_oddities(self) -> Vec<Oddity> {
        self.oddities
    }

    /// Where a path below the root is.
    pub(super) fn locate(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of an attribute without the white space around it, `None` if there is none or it is
    /// odd.
    pub(super) fn text(&mut self, path: &str) -> Option<String> {
        let bytes = self.bytes(path, ATTRIBUTE_BYTES)?;
        if bytes.len() > ATTRIBUTE_BYTES {
            let allowed_bytes = ATTRIBUTE_BYTES;
            return self.odd(path, Problem::TooLong { allowed_bytes });
        }
        match String::from_utf8(bytes) {
            // Values end up on terminals, so control characters are kept out here, once for all.
            Ok(text) if !text.trim().contains(char::is_control) => Some(text.trim().to_owned()),
            _ => self.odd(path, Problem::NotText),
        }
    }

    /// The value of an attribute.
    pub(super) fn value<T>(
        &mut self,
        path: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(path)?;
        parse(&text).or_else(|| {
            let found = text.chars().take(MALFORMED_CHARS).collect();
            self.odd(path, Problem::Malformed { found })
        })
    }

    /// The lines at the beginning of a file of many lines. The last one may be cut.
    pub(super) fn head(&mut self, path: &str) -> Vec<String> {
        let bytes = self.bytes(path, HEAD_BYTES).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.lines()
            .map(|line| line.replace(|c: char| c.is_control() && c != '\t', " "))
            .collect()
    }

    /// The names in a directory, in order. Those that are not UTF-8 are left out: none of the
    /// kernel's are.
    pub(super) fn names(&mut self, path: &str) -> Vec<String> {
        let entries = match fs::read_dir(self.locate(path)) {
            Ok(entries) => entries,
            Err(error) => {
                self.unreadable::<()>(path, &error);
                return Vec::new();
            }
        };
        let mut names: Vec<String> = entries
            .take(DIRECTORY_ENTRIES + 1)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        if names.len() > DIRECTORY_ENTRIES {
            let allowed = DIRECTORY_ENTRIES;
            self.odd::<()>(path, Problem::TooMany { allowed });
        }
        names.sort_unstable();
        names
    }

    /// The last name of a symbolic link's target, as of the link `driver` of a device.
    pub(super) fn link(&mut self, path: &str) -> Option<String> {
        match fs::read_link(self.locate(path)) {
            Ok(target) => match target.file_name()?.to_str() {
                Some(name) if !name.contains(char::is_control) => Some(name.to_owned()),
                _ => self.odd(path, Problem::NotText),
            },
            Err(error) => self.unreadable(path, &error),
        }
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.locate(path).exists()
    }

    /// At most one byte more than `allowed_bytes`, so that the caller sees that there are more.
    fn bytes(&mut self, path: &str, allowed_bytes: usize) -> Option<Vec<u8>> {
        let place = self.locate(path);
        let read = || {
            // Opening a pipe would wait for its other end.
            if !fs::metadata(&place)?.is_file() {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            let limit = u64::try_from(allowed_bytes).map_or(u64::MAX, |limit| limit + 1);
            File::open(&place)?.take(limit).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        };
        match read() {
            Ok(Some(bytes)) => Some(bytes),
            Ok(None) => self.odd(path, Problem::NotAFile),
            Err(error) => self.unreadable(path, &error),
        }
    }

    /// Notes an error, unless it is only the absence of the file: a kernel shows what its version
    /// and device have.
    fn unreadable<T>(&mut self, path: &str, error: &std::io::Error) -> Option<T> {
        match error.kind() {
            // A device that cannot restrict operations answers a read of `op_config` with
            // EOPNOTSUPP.
            ErrorKind::NotFound | ErrorKind::Unsupported => None,
            _ => {
                let error = error.to_string();
                self.odd(path, Problem::Unreadable { error })
            }
        }
    }

    fn odd<T>(&mut self, path: &str, problem: Problem) -> Option<T> {
        if self.oddities.len() < Oddity::MOST {
            let path = path.to_owned();
            self.oddities.push(Oddity { path, problem });
        }
        None
    }
}

/// A sysfs attribute is at most one page of 4 KiB, and so is the kernel's command line.
const ATTRIBUTE_BYTES: usize = 4096;

/// Enough for the first processor of `/proc/cpuinfo` and for all of `/proc/self/status`.
const HEAD_BYTES: usize = 16384;

/// A host with many virtual functions has some thousand PCI functions.
const DIRECTORY_ENTRIES: usize = 65536;

/// What an oddity quotes.
const MALFORMED_CHARS: usize = 64;
