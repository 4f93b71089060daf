//! Names and words of others, made fit for terminals and logs.

use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use multifd_wire::Printable;

/// Text from outside, without anything that commands a terminal or begins a line: see
/// [`Printable`].
///
/// ```
/// use multifd_transport::printable;
///
/// assert_eq!(printable("pc.ram\u{9b}31m"), r"pc.ram\u{9b}31m");
/// ```
pub fn printable(text: impl Display) -> String {
    printable_bytes(text.to_string().as_bytes())
}

/// Bytes from outside, which need not be text.
pub fn printable_bytes(bytes: &[u8]) -> String {
    Printable(bytes).to_string()
}

/// A file's name, which need not be text either.
pub fn printable_path(path: &Path) -> String {
    printable_bytes(path.as_os_str().as_bytes())
}
