//! RAM blocks as image files.
//!
//! Block NAME becomes `DIR/NAME.ram`, a sparse file of the block's length whose byte at an offset
//! is the guest's byte at that offset; a `/` in the name becomes `_`. Until the migration is whole
//! the file is called `NAME.ram.partial`, and it is removed when the migration fails: a file that
//! ends in `.ram` is a whole image, always.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use multifd_wire::BlockName;
use multifd_wire::main_stream::Block;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::atomic_file::{FileError, FileFault, PARTIAL_SUFFIX, PartialFile};

const SUFFIX: &str = ".ram";

/// Zeros to write where a file system cannot make holes.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Why RAM blocks cannot become image files.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ImageError(#[from] pub(crate) ImageFault);

impl From<FileError> for ImageError {
    fn from(error: FileError) -> Self {
        Self(ImageFault::File(error))
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageFault {
    /// The folder cannot be made or read.
    #[error("cannot use the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// An image file cannot be made or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A block's name cannot be a file's name.
    #[error("a block named {name:?} cannot become a file")]
    Name {
        /// The name.
        name: Box<BlockName>,
    },
    /// Two blocks would be written to one file.
    #[error("two blocks would both become {}", path.display())]
    Collision {
        /// The file.
        path: PathBuf,
    },
    /// The source sends pages of a block which it did not announce.
    #[error("the source did not announce a block of that name")]
    UnknownBlock,
    /// The source sends pages that are not in their block.
    #[error("{len} bytes at {offset:#x} are not in the block, which has {block_bytes:#x} bytes")]
    Outside {
        /// The pages' offset in the block, in bytes.
        offset: u64,
        /// The length of the pages, in bytes.
        len: usize,
        /// The length of the block, in bytes.
        block_bytes: u64,
    },
}

/// A folder that may take images: it is there, and holds none.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder unless it is there, for its owner alone, and looks for images of an earlier
    /// migration, whole or partial.
    ///
    /// # Errors
    ///
    /// If images exist already: nothing is overwritten, and images of two migrations are not mixed.
    pub fn prepare(path: &Path) -> Result<Self, ImageError> {
        let failed = |source| ImageFault::Folder {
            path: path.to_owned(),
            source,
        };
        // Guest memory is secret. An existing folder keeps its mode.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            let whole = name.strip_suffix(PARTIAL_SUFFIX.as_bytes()).unwrap_or(name);
            if whole.ends_with(SUFFIX.as_bytes()) {
                let path = entry.path();
                return Err(FileError::from(FileFault::Occupied { path }).into());
            }
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Makes an empty image for each block.
    ///
    /// # Errors
    ///
    /// When a block cannot have a file of its own. No file is left then.
    pub fn create(&self, blocks: &[Block]) -> Result<Images, ImageError> {
        let mut images = Vec::new();
        let mut paths = BTreeSet::new();
        for block in blocks {
            let path = self.path_of(&block.name)?;
            if !paths.insert(path.clone()) {
                return Err(ImageFault::Collision { path }.into());
            }
            images.push(Image::create(block, &path)?);
        }
        Ok(Images { images })
    }

    fn path_of(&self, block: &BlockName) -> Result<PathBuf, ImageFault> {
        let name = block.as_bytes();
        if matches!(name, b"" | b"." | b"..") || name.iter().any(u8::is_ascii_control) {
            return Err(ImageFault::Name {
                name: Box::new(block.clone()),
            });
        }
        let flat = name
            .iter()
            .map(|&byte| if byte == b'/' { b'_' } else { byte })
            .collect();
        let mut file = OsString::from_vec(flat);
        file.push(SUFFIX);
        Ok(self.path.join(file))
    }
}

/// The images of one migration, in the order of the source's blocks. Dropped before
/// [`publish`](Self::publish), they are removed.
#[derive(Debug)]
pub struct Images {
    images: Vec<Image>,
}

impl Images {
    /// The image of a block.
    ///
    /// # Errors
    ///
    /// `UnknownBlock`.
    pub fn of(&self, block: &BlockName) -> Result<&Image, ImageError> {
        self.images
            .iter()
            .find(|image| image.block == *block)
            .ok_or(ImageError(ImageFault::UnknownBlock))
    }

    /// All images.
    pub(crate) fn as_slice(&self) -> &[Image] {
        &self.images
    }

    /// Brings the images to the disk, under the names of partial ones still.
    ///
    /// # Errors
    ///
    /// When the system cannot.
    pub fn sync(&self) -> Result<(), ImageError> {
        // A block without bytes has only a name.
        for image in self.images.iter().filter(|image| image.bytes > 0) {
            image.file.sync()?;
        }
        Ok(())
    }

    /// Gives all images their names, or none.
    ///
    /// # Errors
    ///
    /// When a name is taken, or the system cannot. No image is left then.
    pub fn publish(&self) -> Result<(), ImageError> {
        self.publish_but(&[])
    }

    /// Removes all images, those that have their names too: no process relies on them.
    pub(crate) fn withdraw(&self) {
        self.images.iter().for_each(Image::withdraw);
    }

    /// The same as [`publish`](Self::publish), leaving out blocks that the source has not sent:
    /// they have no image.
    ///
    /// # Errors
    ///
    /// The same.
    pub(crate) fn publish_but(&self, left_out: &[BlockName]) -> Result<(), ImageError> {
        let kept = || {
            let mut images = self.images.iter();
            std::iter::from_fn(move || images.find(|image| !left_out.contains(&image.block)))
        };
        let mut named = 0_usize;
        let outcome = kept().try_for_each(|image| {
            named = named.saturating_add(1);
            image.file.name()
        });
        // One for all: a guest may have thousands of blocks.
        let outcome = outcome.and_then(|()| match kept().next() {
            Some(first) => first.file.sync_name(),
            None => Ok(()),
        });
        if let Err(error) = outcome {
            kept().take(named).for_each(Image::withdraw);
            return Err(error.into());
        }
        Ok(())
    }
}

/// The image of one RAM block. Many threads may write to it at once.
#[derive(Debug)]
pub struct Image {
    block: BlockName,
    file: PartialFile,
    bytes: u64,
    pages: AtomicU64,
    zero_pages: AtomicU64,
}

impl Image {
    fn create(block: &Block, path: &Path) -> Result<Self, ImageError> {
        let file = PartialFile::create(path)?;
        file.file()
            .set_len(block.used_length)
            .map_err(|source| file.failed(source))?;
        Ok(Self {
            block: block.name.clone(),
            file,
            bytes: block.used_length,
            pages: AtomicU64::new(0),
            zero_pages: AtomicU64::new(0),
        })
    }

    /// Removes an image that was given its name for nothing.
    fn withdraw(&self) {
        self.file.withdraw();
    }

    /// The block's name.
    pub(crate) fn block(&self) -> &BlockName {
        &self.block
    }

    /// The length of the block, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The path of the image once it is whole.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The number of pages written; a page that was sent twice counts twice.
    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// The number of pages cleared, counted likewise.
    pub(crate) fn zero_pages(&self) -> u64 {
        self.zero_pages.load(Ordering::Relaxed)
    }

    /// Writes pages: `contents` holds as many as there are `offsets`, in their order.
    ///
    /// # Errors
    ///
    /// `Outside` when one is not in the block, before it is written; `File` when the system cannot.
    pub fn write(
        &self,
        offsets: &[u64],
        page_bytes: usize,
        contents: &[u8],
    ) -> Result<(), ImageError> {
        let mut left = contents;
        for (offset, pages) in Runs::new(offsets, page_bytes) {
            let len = pages.saturating_mul(page_bytes);
            self.check(offset, len)?;
            let (run, rest) = left.split_at_checked(len).unwrap_or((left, &[]));
            self.file
                .file()
                .write_all_at(run, offset)
                .map_err(|source| self.file.failed(source))?;
            left = rest;
        }
        self.pages
            .fetch_add(offsets.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes pages zero.
    ///
    /// # Errors
    ///
    /// `Outside` when one is not in the block, before it is cleared; `File` when the system cannot.
    pub(crate) fn clear(&self, offsets: &[u64], page_bytes: usize) -> Result<(), ImageError> {
        // QEMU lists the zero pages of a row in any order; sorted, a row is one hole.
        let mut sorted = offsets.to_vec();
        sorted.sort_unstable();
        for (offset, pages) in Runs::new(&sorted, page_bytes) {
            let len = pages.saturating_mul(page_bytes);
            self.check(offset, len)?;
            self.punch(offset, len as u64)
                .map_err(|source| self.file.failed(source))?;
        }
        self.zero_pages
            .fetch_add(offsets.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), ImageFault> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(ImageFault::Outside {
                offset,
                len,
                block_bytes: self.bytes,
            }),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(self.file.file(), flags, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(offset, len),
            other => Ok(other?),
        }
    }

    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
            self.file.file().write_all_at(zeros, at)?;
            at = at.saturating_add(zeros.len() as u64);
        }
        Ok(())
    }
}

/// Offsets of pages put together where each page follows the one before: (offset of the first,
/// number of pages).
struct Runs<'a> {
    offsets: &'a [u64],
    page_bytes: u64,
}

impl<'a> Runs<'a> {
    fn new(offsets: &'a [u64], page_bytes: usize) -> Self {
        Self {
            offsets,
            page_bytes: page_bytes as u64,
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = (u64, usize);

    fn next(&mut self) -> Option<Self::Item> {
        let first = *self.offsets.first()?;
        let followers = self
            .offsets
            .windows(2)
            .take_while(|pair| match pair {
                [one, next] => one.checked_add(self.page_bytes) == Some(*next),
                _ => false,
            })
            .count();
        let pages = followers.saturating_add(1);
        self.offsets = self.offsets.get(pages..).unwrap_or_default();
        Some((first, pages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, used_length: u64) -> Block {
        Block {
            name: BlockName::new(name.as_bytes()).unwrap(),
            used_length,
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn pages_land_where_they_belong_and_cleared_ones_read_as_zero() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::prepare(dir.path()).unwrap();
        let images = folder.create(&[block("pc.ram", 8 * 4096)]).unwrap();
        let image = images.of(&BlockName::new(b"pc.ram").unwrap()).unwrap();
        let contents: Vec<u8> = [[1; 4096], [2; 4096], [3; 4096]].concat();
        image.write(&[4096, 8192, 0], 4096, &contents).unwrap();
        image.clear(&[8192, 28672, 4096], 4096).unwrap();
        assert_eq!((image.pages(), image.zero_pages()), (3, 3));
        images.sync().unwrap();
        images.publish().unwrap();
        drop(images);
        let bytes = fs::read(dir.path().join("pc.ram.ram")).unwrap();
        assert_eq!(bytes.len(), 8 * 4096);
        assert!(bytes[..4096].iter().all(|&byte| byte == 3));
        assert!(bytes[4096..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn where_holes_cannot_be_made_zeros_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let images = Folder::prepare(dir.path())
            .unwrap()
            .create(&[block("b", 200_000)])
            .unwrap();
        let image = &images.as_slice()[0];
        image.write(&[0], 200_000, &[1; 200_000]).unwrap();
        image.write_zeros(1000, 150_000).unwrap();
        images.sync().unwrap();
        images.publish().unwrap();
        let bytes = fs::read(image.path()).unwrap();
        assert!(bytes[1000..151_000].iter().all(|&byte| byte == 0));
        assert!(
            bytes[..1000]
                .iter()
                .chain(&bytes[151_000..])
                .all(|&byte| byte == 1)
        );
    }

    #[test]
    fn a_partial_image_is_called_so_and_goes_with_the_failure() {
        let dir = tempfile::tempdir().unwrap();
        let images = Folder::prepare(dir.path())
            .unwrap()
            .create(&[block("/rom@etc/x", 4096)])
            .unwrap();
        assert_eq!(files(dir.path()), ["_rom@etc_x.ram.partial"]);
        drop(images);
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn pages_outside_the_block_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let images = Folder::prepare(dir.path())
            .unwrap()
            .create(&[block("b", 2 * 4096)])
            .unwrap();
        let image = images.of(&BlockName::new(b"b").unwrap()).unwrap();
        let page = [1; 4096];
        for offset in [8192, 4097, u64::MAX, u64::MAX - 4095] {
            assert!(matches!(
                image.write(&[offset], 4096, &page),
                Err(ImageError(ImageFault::Outside { .. }))
            ));
            assert!(matches!(
                image.clear(&[offset], 4096),
                Err(ImageError(ImageFault::Outside { .. }))
            ));
        }
        assert!(matches!(
            images.of(&BlockName::new(b"c").unwrap()),
            Err(ImageError(ImageFault::UnknownBlock))
        ));
    }

    #[test]
    fn names_that_cannot_be_files_are_refused_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["..", ".", "a\nb", "\x1b[2J"] {
            let result = Folder::prepare(dir.path())
                .unwrap()
                .create(&[block("ok", 0), block(name, 0)]);
            assert!(
                matches!(result, Err(ImageError(ImageFault::Name { .. }))),
                "{name:?}"
            );
            assert!(files(dir.path()).is_empty());
        }
        let result = Folder::prepare(dir.path())
            .unwrap()
            .create(&[block("a/b", 0), block("a_b", 0)]);
        assert!(matches!(
            result,
            Err(ImageError(ImageFault::Collision { .. }))
        ));
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn a_length_no_file_can_have_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let result = Folder::prepare(dir.path())
            .unwrap()
            .create(&[block("b", u64::MAX)]);
        assert!(matches!(
            result,
            Err(ImageError(ImageFault::File(FileError(
                FileFault::Io { .. }
            ))))
        ));
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn images_that_are_there_are_not_touched() {
        for name in ["pc.ram.ram", "pc.ram.ram.partial"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), "mine").unwrap();
            assert!(matches!(
                Folder::prepare(dir.path()),
                Err(ImageError(ImageFault::File(FileError(
                    FileFault::Occupied { .. }
                ))))
            ));
            assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"mine");
        }
    }

    #[test]
    fn all_images_are_published_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let blocks = ["a", "b", "c"].map(|name| block(name, 4096));
        let images = Folder::prepare(dir.path())
            .unwrap()
            .create(&blocks)
            .unwrap();
        images.sync().unwrap();
        // Another process takes a name meanwhile.
        fs::write(dir.path().join("b.ram"), "mine").unwrap();
        assert!(matches!(
            images.publish(),
            Err(ImageError(ImageFault::File(FileError(
                FileFault::Occupied { .. }
            ))))
        ));
        drop(images);
        assert_eq!(files(dir.path()), ["b.ram"]);
        assert_eq!(fs::read(dir.path().join("b.ram")).unwrap(), b"mine");
    }

    #[test]
    fn folders_that_are_made_are_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let inner = dir.path().join("a/b");
        Folder::prepare(&inner).unwrap();
        assert_eq!((mode(&dir.path().join("a")), mode(&inner)), (0o700, 0o700));
        // One that was there stays what it was.
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        Folder::prepare(&inner).unwrap();
        assert_eq!(mode(&inner), 0o755);
    }

    #[test]
    fn runs_join_what_follows() {
        let runs: Vec<_> = Runs::new(&[0, 4096, 8192, 4096, 16384, 20480], 4096).collect();
        assert_eq!(runs, [(0, 3), (4096, 1), (16384, 2)]);
        assert_eq!(Runs::new(&[], 4096).count(), 0);
        assert_eq!(Runs::new(&[u64::MAX - 1, 0], 4096).count(), 2);
    }
}
