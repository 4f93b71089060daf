//! Writes pages in a thread of its own, so that no migration waits for a disk.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use super::Page;
use crate::say;

/// Pages that wait to be written. One more is not written.
const MOST: usize = 64;

/// Time limit for the disk at the end of the command.
const LAST_PAGES: Duration = Duration::from_secs(10);

/// The thread, and what it has to write.
#[derive(Debug)]
pub(crate) struct Writer {
    pages: SyncSender<(PathBuf, Box<Page>)>,
    /// Closed when all is written.
    done: Receiver<()>,
}

impl Writer {
    /// # Errors
    ///
    /// When there is no thread to be had.
    pub(crate) fn start() -> io::Result<Self> {
        let (pages, waiting) = mpsc::sync_channel::<(PathBuf, Box<Page>)>(MOST);
        let (ends, done) = mpsc::channel::<()>();
        thread::Builder::new()
            .name("reports".to_owned())
            .spawn(move || {
                for (path, page) in waiting {
                    write(path, &page);
                }
                drop(ends);
            })
            .map_err(multifd_transport::failure::NoThread::io)?;
        Ok(Self { pages, done })
    }

    /// Writes a page. A note says what became of it; a migration's outcome is the same either way.
    pub(crate) fn write(&self, path: PathBuf, page: Page) {
        if let Err(error) = self.pages.try_send((path, Box::new(page))) {
            let (mpsc::TrySendError::Full((path, _)) | mpsc::TrySendError::Disconnected((path, _))) =
                error;
            let path = say::printable_path(&path);
            say::note(format_args!(
                "the report {path} is not written: the disk is too slow for so many"
            ));
        }
    }

    /// Waits until all pages are written, and not without end.
    pub(crate) fn finish(self) {
        drop(self.pages);
        if let Err(RecvTimeoutError::Timeout) = self.done.recv_timeout(LAST_PAGES) {
            let within = LAST_PAGES.as_secs();
            say::note(format_args!(
                "the disk takes no report within {within} s: it is not written"
            ));
        }
    }
}

fn write(path: PathBuf, page: &Page) {
    match multifd_relay::write_new(&path, page.html().as_bytes()) {
        Ok(()) => say::note(format_args!(
            "the report is in {}",
            say::printable_path(&path)
        )),
        Err(error) => say::note(format_args!(
            "the report could not be written: {}",
            say::chain(&error)
        )),
    }
}
