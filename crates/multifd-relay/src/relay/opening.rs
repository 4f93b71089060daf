//! A migration whose destination has not been reached: it waits for its first channel, and for the
//! destination's answer.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use multifd_transport::DialError;
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::incoming::{Arrival, Inbox};
use multifd_transport::{Cancel, Moment, Stream, circle};
use multifd_wire::main_stream::MainReceiver;

use super::link::Link;
use super::main_channel;
use super::reach::unreached;
use super::{CHANNELS_TIMEOUT, RelayConfig};
use crate::failure::{Cause, Channel, Failure, Leg, SetupFault};
use crate::leg::{Caller, Introduction, Terms};

/// How often to check for the source's end while nothing else happens.
const TICK: Duration = Duration::from_millis(100);

/// The most bytes to read from a main channel whose source has closed before the destination was
/// dialled.
const REMNANT_LIMIT_BYTES: usize = 64 << 20;

/// A migration whose destination has not been dialled.
pub(super) struct Opening<'a> {
    pub(super) source: Arc<Stream>,
    pub(super) introduction: Introduction,
    pub(super) start: Vec<u8>,
    /// The source has closed, and its bytes are to be passed on.
    pub(super) is_whole: bool,
    /// The connections that have come.
    pub(super) early: Vec<Arrival>,
    pub(super) config: &'a RelayConfig,
    pub(super) cancel: &'a Cancel,
}

impl Opening<'_> {
    /// Waits for the first channel if the set-up announces channels. Otherwise the destination
    /// might be dialled in vain, and a QEMU takes only one migration.
    pub(super) fn wait_for_channel(
        &mut self,
        channels: &Inbox,
        has_channels: bool,
    ) -> Result<(), Failure> {
        let deadline = Moment::now() + CHANNELS_TIMEOUT;
        let failed = |fault: SetupFault| Err(main_channel::failed(Leg::Source, fault.into()));
        if !has_channels {
            return Ok(());
        }
        loop {
            match channels.next_within(TICK) {
                Some(Arrival::Refused(fault)) => return failed(fault),
                Some(channel @ Arrival::Channel(_)) => {
                    self.early.push(channel);
                    return Ok(());
                }
                Some(other @ (Arrival::Preempt(_) | Arrival::Doubt(_))) => self.early.push(other),
                None => {}
            }
            self.check_cancel()?;
            self.check_source()?;
            if Moment::now() >= deadline {
                let (missing, within) = (None, CHANNELS_TIMEOUT);
                return failed(SetupFault::ChannelsMissing { missing, within });
            }
        }
    }

    fn check_cancel(&self) -> Result<(), Failure> {
        match self.cancel.is_cancelled() {
            true => Err(Failure::here(TransportCause::Cancelled.into())),
            false => Ok(()),
        }
    }

    /// Fails if the source has closed an incomplete stream. A source without a return path may have
    /// sent everything.
    fn check_source(&mut self) -> Result<(), Failure> {
        if self.is_whole || !self.source.peer_has_closed() {
            return Ok(());
        }
        let gone = || main_channel::failed(Leg::Source, Cause::Incomplete);
        while self.start.len() < REMNANT_LIMIT_BYTES {
            let mut piece = [0; 4096];
            match self.source.read_some(&mut piece) {
                Ok(0) => break,
                Ok(count) => self
                    .start
                    .extend_from_slice(piece.get(..count).unwrap_or_default()),
                Err(_) => return Err(gone()),
            }
        }
        let mut receiver = MainReceiver::new(self.config.limits);
        let mut bytes = self.start.as_slice();
        let mut facts = main_channel::Facts::default();
        loop {
            match receiver.push(&mut bytes) {
                Ok(Some(event)) => facts.note(&event),
                Ok(None) => break,
                // A stream that cannot be followed is passed on.
                Err(_) => {
                    self.is_whole = true;
                    return Ok(());
                }
            }
        }
        let has_ended = receiver.finish().is_ok() || facts.ram_ended;
        self.is_whole = has_ended && !facts.return_path;
        match self.is_whole {
            true => Ok(()),
            false => Err(gone()),
        }
    }

    /// Dials main first: a destination before QEMU 8.0 takes the first connection for main. Also
    /// returns the terms.
    pub(super) fn dial(&mut self) -> Result<(Caller, Link, Terms), Failure> {
        self.check_source()?;
        let address = self
            .config
            .connect
            .of(self.introduction.name.as_ref())
            .map_err(|error| main_channel::failed(Leg::Source, error.into()))?;
        let config = self.config;
        let (source, timeout) = (Arc::clone(&self.source), config.dial_timeout);
        let introduction = self.introduction.clone();
        // A call is given up only if the migration has failed. A destination takes each call for a
        // connection of its source, and a source that has closed may have sent everything.
        let failure = Cell::new(None);
        let opening = RefCell::new(self);
        let given_up = || {
            let mut opening = opening.borrow_mut();
            let fault = opening.check_cancel().and_then(|()| opening.check_source());
            let given_up = fault.is_err();
            failure.set(fault.err());
            given_up
        };
        let target = Caller::resolve(address.clone(), config, &introduction, &given_up);
        let called = target.and_then(|target| {
            let (destination, terms) = target.main(timeout, &given_up)?;
            Ok((target, destination, terms))
        });
        match (called, failure.take()) {
            (Ok((target, destination, terms)), _) => {
                // Nothing was passed on, so the source has its guest.
                circle::look_behind(&destination, target.socket_address(), timeout, &given_up)
                    .map_err(|circle| Failure::here(circle.into()))?;
                let channel = Channel::Main;
                let link = Link {
                    channel,
                    source,
                    destination,
                };
                Ok((target, link, terms))
            }
            (Err(DialError::GivenUp), Some(failure)) => Err(failure),
            (Err(error), _) => Err(unreached(error, &address, Channel::Main)),
        }
    }
}
