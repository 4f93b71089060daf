//! The relay: a transcoder between two standard multifd endpoints.
//!
//! It accepts a migration from a source, dials the destination once for each of its connections,
//! main first, and passes everything on: the main channel as it is, both ways, and each multifd
//! channel packet by packet, with the payloads in the method of its outgoing leg. Channels map one
//! to one, and the order inside a channel is kept. No channel waits for another, but for a page
//! that comes as the difference to one of the other's. The main channel waits, at the end of each
//! round, until all channels have passed the round's end on.
//!
//! The relay recognises the method of each packet that arrives. A payload that already has the
//! outgoing method is passed on as it is, unless [`RelayConfig::recode`] asks for more.
//!
//! This example serves one migration. [`Relay::accept`] and [`pass_on`] serve any number at once.
//!
//! ```
//! use multifd_relay::leg::LegAddress;
//! use multifd_relay::relay::{Relay, RelayConfig, Update};
//! use multifd_wire::Method;
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/guest/source.rs"));
//! # use multifd_relay::{image::Folder, receive::receive, SourceSettings};
//! # use multifd_transport::{incoming::Acceptor, Cancel};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let mut acceptor = Acceptor::bind(&Address::Unix(folder.path().join("destination")))?;
//! # let address = acceptor.address().clone();
//! # let images = folder.path().join("images");
//! # let destination = std::thread::spawn(move || {
//! #     let images = Folder::prepare(&images).unwrap();
//! #     let settings = SourceSettings::default();
//! #     receive(&mut acceptor, &images, settings, &Cancel::new(), &mut |_| {})
//! # });
//! let config = RelayConfig::new(address, Method::Zlib);
//! let listen: LegAddress = "tcp:127.0.0.1:0".parse()?;
//! let mut relay = Relay::bind(listen, config)?;
//! println!("listening on {}", relay.address());
//! # send_guest(relay.address())?;
//!
//! let report = relay.serve_one(&mut |update| {
//!     if let Update::Progress(totals) = update {
//!         println!("{} pages", totals.pages);
//!     }
//! })?;
//! assert_eq!((report.channels, report.totals.pages), (1, 1));
//! # assert_eq!(destination.join().unwrap()?.totals.zero_pages, 1);
//! # Ok(())
//! # }
//! ```

mod back;
mod counters;
mod dead_link;
mod delay;
mod ends;
mod first;
mod gate;
mod link;
mod main_channel;
mod opening;
mod outline;
mod pump;
mod reach;
mod session;
mod silence;
mod taken;
mod verify;
mod waits;
mod watch;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use multifd_codec::{Backend, PathCounts, Settings, Unsupported};
use multifd_codec::{auto, delta};
use multifd_wire::{Fault, Limits, Method};

use self::gate::CHANNELS_TIMEOUT;
pub use self::reach::look_for_relay;
pub(crate) use self::silence::SILENCE_TIMEOUT;
pub use self::verify::Verified;
pub(crate) use self::verify::VerifyFault;
pub use self::waits::{ChannelWaits, Waits};
pub use self::watch::MigrationNote;
use crate::failure::Failure;
use multifd_transport::incoming::{Acceptor, Incoming};
use multifd_transport::{Address, Cancel, Circle, DIAL_TIMEOUT, Listener, RateLimit, circle};

use crate::leg::{Encryption, Greeter, LegAddress};
use crate::trunk::Name;

/// The configuration of a relay.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RelayConfig {
    /// The destination that it dials for every migration, with its protocol.
    pub connect: LegAddress,
    /// The name of its migrations, for a far relay with several destinations. A migration that came
    /// with a name keeps it.
    pub name: Option<Name>,
    /// TLS, for the legs that use it.
    pub encryption: Encryption,
    /// The method that it writes towards `connect`.
    pub compression: Method,
    /// Whether payloads that arrive in that method are compressed again. Otherwise they are passed
    /// on unchanged.
    pub recode: bool,
    /// The settings of the codecs on both legs.
    pub settings: Settings,
    /// Whether each migration chooses its effort, packet by packet, if the method and the settings
    /// leave a [choice](multifd_codec::auto::Auto::new). Otherwise `settings` give the effort.
    pub auto: bool,
    /// The most processors that encoding may use in one migration that chooses its effort.
    pub processors: Option<f64>,
    /// A migration may keep this many bytes of pages at each end of a trunk, to send differences to
    /// them; 0 for none. All migrations together keep no more than
    /// [`multifd_codec::delta::memory::limit`].
    pub delta_memory: u64,
    /// The limits for a source's numbers.
    pub limits: Limits,
    /// The time limit for one connection to the destination.
    pub dial_timeout: Duration,
    /// Whether the relays of a trunk compare the pages of each round before it is complete at the
    /// destination. A far relay with this setting takes no other migrations.
    pub verify: bool,
    /// Whether a wish to end is passed over once postcopy has begun. The guest runs at the
    /// destination then, and a part of its memory is only at the source.
    pub stays_in_postcopy: bool,
    /// The number of trunk connections that carry each multifd channel, or main if there are no
    /// channels: 1 to 16. A far relay without this feature takes one.
    pub trunk_channels: u8,
    /// The limit for bytes that are written towards `connect`, which all its clones share.
    pub rate_limit: Option<RateLimit>,
}

/// A relay that listens.
#[derive(Debug)]
pub struct Relay {
    /// It must be dropped before the acceptor, whose door it uses.
    greeter: Greeter,
    acceptor: Acceptor,
    leg: LegAddress,
    config: RelayConfig,
}

/// A migration that was delivered.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MigrationReport {
    /// The source, as far as the system names it.
    pub peer: String,
    /// Multifd channels; 0 for a migration without multifd.
    pub channels: usize,
    /// The totals.
    pub totals: Traffic,
    /// `true`: the destination has said that it has the guest. `None`: it could not say so, because
    /// the source has no return path.
    pub confirmed: Option<bool>,
    /// Unusual events.
    pub remarks: Vec<Remark>,
    /// The work of decoding payloads from the source, if any were decoded.
    pub decoded: Option<Work>,
    /// The work of encoding payloads for the destination, if any were encoded. A payload that has
    /// the outgoing method already is passed on, unless [`RelayConfig::recode`] is set.
    pub encoded: Option<Work>,
    /// The efforts that the migration chose, if it had the choice.
    pub auto: Option<auto::Summary>,
    /// The result of verification, if the relays of a trunk verified pages.
    pub verified: Option<Verified>,
    /// The pages that went to another relay as differences, if differences were agreed on.
    pub differences: Option<delta::Counts>,
    /// The waits of each channel; main is the first.
    pub waits: Vec<ChannelWaits>,
    /// From the first connection to the last close.
    pub duration: Duration,
}

/// The work of the codecs of one direction, over all channels.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Work {
    /// The method read or written.
    pub method: Method,
    /// The backend at the end of the migration, with the reason if a better one was asked for.
    pub backend: Backend,
    /// The pages by backend.
    pub pages: PathCounts,
}

/// The totals of a relay, over all channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Pages with contents on multifd channels.
    pub pages: u64,
    /// Zero pages on multifd channels.
    pub zero_pages: u64,
    /// Bytes read from the source, main channel included.
    pub bytes_in: u64,
    /// Bytes written to the destination, main channel included.
    pub bytes_out: u64,
    /// The guest's memory in bytes, once the set-up has shown it; 0 before, and where the stream
    /// cannot be followed.
    pub memory: u64,
    /// Bytes of the guest's memory that all pages so far stand for, zero pages and pages on the
    /// main channel included. While it is less than `memory`, hardly any page has come twice.
    pub carried: u64,
    /// Rounds with pages that have ended, where the main channel shows them: from QEMU 8.1 and its
    /// machine types on.
    pub rounds: u64,
}

/// An unusual event in a migration that was passed on. [`Display`](fmt::Display) says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remark(Unusual);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unusual {
    /// The main channel could not be followed to its end.
    NotFollowed(Fault),
    /// The main channel ended after all memory, but not at a recognised end.
    EndNotSeen,
    /// The return path could not be followed.
    ReturnPathNotFollowed(Fault),
    /// The destination sent bytes after its word.
    BehindWord,
    /// The migration switched to postcopy.
    Postcopy,
    /// Postcopy's own connection was passed on.
    Preempt,
    /// COLO began.
    Colo,
    /// The other relay carries channels by fewer connections than wanted.
    FewerTrunkChannels {
        /// The smallest number for a channel.
        taken: u8,
        /// The wanted number.
        wanted: u8,
    },
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unusual::NotFollowed(fault) => {
                write!(f, "the main channel could not be followed, and was passed on ({fault})")
            }
            Unusual::EndNotSeen => f.write_str(
                "the main channel ended without a recognised end marker, and was passed on: check that the guest runs at the destination",
            ),
            Unusual::ReturnPathNotFollowed(fault) => {
                write!(f, "the return path could not be followed, and was passed on ({fault})")
            }
            Unusual::BehindWord => f.write_str(
                "the destination sent bytes after its final message; they were dropped",
            ),
            Unusual::Postcopy => f.write_str("it switched to postcopy, whose pages are not compressed"),
            Unusual::Preempt => f.write_str("postcopy's own connection was passed on"),
            Unusual::Colo => f.write_str("COLO began, which is passed on and not followed"),
            Unusual::FewerTrunkChannels { taken, wanted } => write!(
                f,
                "the other relay took {taken} of {wanted} trunk channels: it is older, or the \
                 migration has too many"
            ),
        }
    }
}

/// An event while a migration is passed on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// The progress, about twice a second, and once more at the end.
    Progress(Traffic),
    /// The waits of each channel so far, before each [`Progress`](Self::Progress).
    Waits(Vec<ChannelWaits>),
    /// Something that an operator may want to fix.
    Note(MigrationNote),
    /// Postcopy has begun: a part of the guest is at each end.
    Postcopy,
    /// The effort has changed.
    Effort(auto::Change),
}

impl RelayConfig {
    /// The usual configuration.
    pub fn new(connect: impl Into<LegAddress>, compression: Method) -> Self {
        Self {
            connect: connect.into(),
            name: None,
            encryption: Encryption::default(),
            compression,
            recode: false,
            settings: Settings::default(),
            auto: false,
            processors: None,
            delta_memory: u64::MAX,
            limits: Limits::default(),
            dial_timeout: DIAL_TIMEOUT,
            verify: false,
            stays_in_postcopy: false,
            trunk_channels: 1,
            rate_limit: None,
        }
    }

    /// The backend of the encoders, as far as it can be known before the first migration.
    ///
    /// # Errors
    /// If this build cannot write the method, or not with the wanted accelerator.
    pub fn backend(&self) -> Result<Backend, Unsupported> {
        Ok(multifd_codec::encoder(self.compression, &self.settings)?.backend())
    }

    /// The backend of the decoders for the methods `qpl` and `canned`. An accelerator decodes only
    /// pages that are compressed independently.
    ///
    /// # Errors
    /// If the wanted accelerator is not available.
    pub fn reader(&self) -> Result<Backend, Unsupported> {
        Ok(multifd_codec::decoder(Method::Qpl, &self.settings)?.backend())
    }
}

impl Relay {
    /// Listens on `listen`.
    ///
    /// # Errors
    /// If it cannot listen on the address.
    pub fn bind(listen: impl Into<LegAddress>, config: RelayConfig) -> io::Result<Relay> {
        let listen = listen.into();
        Self::on(Listener::bind(&listen.address)?, &listen, config)
    }

    /// Serves connections to `listener`, which listens on the address of `leg`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn on(listener: Listener, leg: &LegAddress, config: RelayConfig) -> io::Result<Relay> {
        if !config.connect.needs_name() {
            listener.leads_to(&config.connect.address);
        }
        let acceptor = Acceptor::on(listener)?;
        let leg = LegAddress {
            address: acceptor.address().clone(),
            ..leg.clone()
        };
        let greeter = Greeter::start(acceptor.door(), &leg, &config)?;
        Ok(Relay {
            greeter,
            acceptor,
            leg,
            config,
        })
    }

    /// The address it listens on. The port is the real one even if 0 was asked for.
    pub fn address(&self) -> &Address {
        self.acceptor.address()
    }

    /// The configuration.
    pub fn config(&self) -> &RelayConfig {
        &self.config
    }

    /// Checks that migrations do not come back here, by another name or through other relays of
    /// this process. If only a call can show it, the migration fails before any of its bytes are
    /// passed on.
    ///
    /// # Errors
    /// The circle that migrations would take.
    pub fn check_way(&self) -> Result<(), Circle> {
        match self.config.connect.needs_name() {
            true => Ok(()),
            false => circle::look_ahead(&self.config.connect.address),
        }
    }

    /// Begins no more migrations; those under way go on.
    pub fn refuse_new(&self) {
        self.acceptor.refuse_new();
        self.greeter.refuse_new();
    }

    /// The address it listens on, with its protocol.
    pub fn leg(&self) -> &LegAddress {
        &self.leg
    }

    /// Its acceptor, which reports connections that are passed over.
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// Waits for the next migration. [`pass_on`] passes it on: any number may be passed on at once.
    ///
    /// # Errors
    /// If `cancel` ends the wait, or nothing can be accepted any more.
    pub fn accept(&mut self, cancel: &Cancel) -> Result<Incoming, Failure> {
        self.acceptor
            .accept(cancel)
            .map_err(multifd_transport::Failure::widened)
    }

    /// Waits for the next migration and passes it on.
    ///
    /// # Errors
    /// As [`pass_on`].
    pub fn serve_one(
        &mut self,
        observe: &mut dyn FnMut(Update),
    ) -> Result<MigrationReport, Failure> {
        let cancel = Cancel::new();
        let incoming = self.accept(&cancel)?;
        pass_on(incoming, &self.config, &cancel, observe)
    }
}

/// Passes a migration on, unless `cancel` ends it before its destination has said that it has the
/// guest.
///
/// # Errors
/// The first failure of any channel ends the migration: both legs of all channels are closed, so
/// that the source's guest goes on running.
pub fn pass_on(
    incoming: Incoming,
    config: &RelayConfig,
    cancel: &Cancel,
    observe: &mut dyn FnMut(Update),
) -> Result<MigrationReport, Failure> {
    let source = Arc::clone(&incoming.main);
    // A source that is a relay gets the reason, unless it has got one before.
    session::run(incoming, config, cancel, observe)
        .inspect_err(|failure| source.explain(&failure.explain()))
}
