//! The connections of a migration that is taken, and how they end.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use multifd_transport::Stream;

/// How long a source may take to close its channels, once its main channel is closed.
const CHANNELS_AFTER: Duration = Duration::from_secs(3);

/// The connections of a migration, to be closed together; the first is the main channel.
#[derive(Default)]
pub(crate) struct Connections(Mutex<(Vec<Arc<Stream>>, Option<Instant>)>);

impl Connections {
    pub(crate) fn add(&self, stream: &Arc<Stream>) {
        let mut state = self.lock();
        if state.1.is_some() {
            close(stream);
        }
        state.0.push(Arc::clone(stream));
    }

    /// Closes the main channel. A source before QEMU 11.1 may stand still for good where its channels break, and closes them
    /// by itself where only its main channel does; until then they are read to nowhere.
    pub(crate) fn fail(&self) {
        let mut state = self.lock();
        state.1.get_or_insert_with(Instant::now);
        state.0.first().inspect(|main| close(main));
    }

    /// Closes all some time after they have failed.
    pub(crate) fn go_on_closing(&self) {
        if self
            .lock()
            .1
            .is_some_and(|since| since.elapsed() >= CHANNELS_AFTER)
        {
            self.close();
        }
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.1.get_or_insert_with(Instant::now);
        state.0.iter().for_each(|stream| close(stream));
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Arc<Stream>>, Option<Instant>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn close(stream: &Stream) {
    // A connection that cannot be shut down is closed already.
    let _ = stream.shutdown(Shutdown::Both);
}
