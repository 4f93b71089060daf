//! Accepting the connections of a source engine.
//!
//! Unlike a QEMU it says how many channels it will open, and opens them only when the destination has agreed.

use std::time::{Duration, Instant};

use multifd_wire::Hello;

use crate::Stream;
use crate::engine_fault::EngineFault;
use crate::failure::{Cause, Failure};
use crate::incoming::{
    Acceptor, HELLO_TIMEOUT, Kind, SetupFault, has_hello, is_channel, kind, read_hello, unnamed,
};
use crate::parameters::Cancel;

/// How soon a wish to end is noticed while nobody comes.
const TICK: Duration = Duration::from_millis(50);

/// Who begins a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A QEMU, whose migration [`receive::receive`](crate::receive::receive) or
    /// [`record::record`](crate::record::record) takes.
    Qemu,
    /// A source engine, whose guest [`receive`](super::receive) takes.
    Engine,
}

impl Acceptor {
    /// Waits until somebody begins a migration, and says who. Nothing is taken: what takes it comes next.
    ///
    /// # Errors
    ///
    /// When a connection is none of a migration, which is closed then; or [`EngineFault::Cancelled`].
    pub fn peer(&mut self, cancel: &Cancel) -> Result<Peer, Failure> {
        self.find(cancel).map(|(_, peer)| peer).map_err(unnamed)
    }

    /// Waits for the main connection of a source engine.
    pub(super) fn accept_engine(&mut self, cancel: &Cancel) -> Result<Stream, Cause> {
        match self.find(cancel)? {
            (index, Peer::Engine) => Ok(self.waiting.remove(index)),
            (index, Peer::Qemu) => {
                self.waiting.remove(index);
                Err(SetupFault::Qemu.into())
            }
        }
    }

    /// Waits for `count` channels whose hellos name this session. Channels of others are closed; who begins another
    /// migration waits.
    pub(super) fn accept_channels(
        &mut self,
        session: [u8; 16],
        count: usize,
        watch: &dyn Fn() -> Result<(), Cause>,
    ) -> Result<Vec<(Hello, Stream)>, Failure> {
        let channels = self.find_channels(session, count, watch);
        // A stranger among them has closed, or said something and no more; or was too late.
        self.waiting.retain(|stream| {
            matches!(
                kind(stream),
                Ok(Kind::Main | Kind::Engine | Kind::Unknown(_))
            )
        });
        let channels = channels?;
        for (index, (hello, _)) in channels.iter().enumerate() {
            let id = hello.channel;
            if usize::from(id) != index {
                let fault = match usize::from(id) < index {
                    true => SetupFault::ChannelTwice { id },
                    false => SetupFault::ChannelId {
                        found: id,
                        channels: count,
                    },
                };
                return Err(unnamed(fault.into()));
            }
        }
        Ok(channels)
    }

    /// Waits for so many, in the order of their ids.
    fn find_channels(
        &mut self,
        session: [u8; 16],
        count: usize,
        watch: &dyn Fn() -> Result<(), Cause>,
    ) -> Result<Vec<(Hello, Stream)>, Failure> {
        let mut channels: Vec<(Hello, Stream)> = Vec::new();
        let deadline = Instant::now() + HELLO_TIMEOUT;
        while channels.len() < count {
            self.accept_waiting()
                .map_err(|error| unnamed(Cause::Listener(error)))?;
            let found = self.waiting.iter().position(|stream| match kind(stream) {
                // Nobody waits for one that begins to say something.
                Ok(Kind::Multifd) => has_hello(stream),
                Ok(Kind::Closed | Kind::Stranger(_)) | Err(_) => true,
                Ok(Kind::Main | Kind::Engine | Kind::Unknown(_)) => false,
            });
            if let Some(index) = found {
                let stream = self.waiting.remove(index);
                if !has_hello(&stream) {
                    continue;
                }
                // One that says something else is not one of these.
                let Ok(channel) = read_hello(stream) else {
                    continue;
                };
                if channel.hello.uuid == session {
                    channels.push((channel.hello, channel.stream));
                }
                continue;
            }
            watch().map_err(unnamed)?;
            if Instant::now() >= deadline {
                let fault = EngineFault::Channels {
                    found: channels.len(),
                    expected: count,
                    within: HELLO_TIMEOUT,
                };
                return Err(unnamed(fault.into()));
            }
            // The rest of a hello is looked for after a while.
            let has_spoken = |kind: &Kind| !matches!(kind, Kind::Unknown(_));
            self.wait_for_news(Some(TICK), has_spoken)
                .map_err(|error| unnamed(Cause::Listener(error)))?;
        }
        channels.sort_by_key(|(hello, _)| hello.channel);
        Ok(channels)
    }

    fn find(&mut self, cancel: &Cancel) -> Result<(usize, Peer), Cause> {
        loop {
            if cancel.is_cancelled() {
                return Err(EngineFault::Cancelled.into());
            }
            if let Some(found) = self.look_for_main()? {
                return Ok(found);
            }
            self.wait_for_news(Some(TICK), is_channel)
                .map_err(Cause::Listener)?;
            self.accept_waiting().map_err(Cause::Listener)?;
        }
    }
}
