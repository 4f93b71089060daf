//! The connections of a migration that is taken, and how they end.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use multifd_transport::Stream;

/// Time limit for a source to close its channels, once its main channel is closed.
const CHANNELS_AFTER: Duration = Duration::from_secs(3);

/// The connections of a migration, to be closed together.
#[derive(Default)]
pub(crate) struct Connections(Mutex<State>);

#[derive(Default)]
struct State {
    /// The first is the main channel.
    streams: Vec<Arc<Stream>>,
    /// When closing began.
    closed: Option<Instant>,
}

impl Connections {
    pub(crate) fn add(&self, stream: &Arc<Stream>) {
        let mut state = self.lock();
        if state.closed.is_some() {
            close(stream);
        }
        state.streams.push(Arc::clone(stream));
    }

    /// Closes the main channel. A source before QEMU 11.1 may stand still for good where its
    /// channels break, and closes them by itself where only its main channel does. Until then they
    /// are read to nowhere.
    pub(crate) fn fail(&self) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(Instant::now);
        state.streams.first().inspect(|main| close(main));
    }

    /// Closes all, some time after [`fail`](Self::fail).
    pub(crate) fn go_on_closing(&self) {
        let closed = self.lock().closed;
        if closed.is_some_and(|since| since.elapsed() >= CHANNELS_AFTER) {
            self.close();
        }
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(Instant::now);
        state.streams.iter().for_each(|stream| close(stream));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn close(stream: &Stream) {
    // A connection that cannot be shut down is closed already.
    let _ = stream.shutdown(Shutdown::Both);
}
