//! The relay: a transcoder between two standard multifd endpoints.
//!
//! It accepts a migration from a source, dials the destination once for each of its connections,
//! main first, and passes everything on: the main channel as it is, both ways, and each multifd
//! channel packet by packet, with the payloads in the method of its outgoing leg. Channels map one
//! to one, and the order inside a channel is kept. No channel waits for another, but for a page
//! that comes as the difference to one of the other's. The main channel waits, at the end of each
//! round, until all channels have passed the round's end on.
//!
//! What arrives is recognised packet by packet. A payload that already has the outgoing method is
//! passed on as it is, unless [`RelayConfig::recode`] asks for more.
//!
//! A relay in a program of one's own, for one migration. [`Relay::accept`] and [`pass_on`] serve
//! any number at once.
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
mod ends;
mod first;
mod gate;
mod link;
mod main_channel;
mod outline;
mod pump;
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
pub(crate) use self::silence::SILENCE_TIMEOUT;
pub use self::verify::{Verified, VerifyFault};
pub use self::waits::{ChannelWaits, Party, Waits};
pub use self::watch::MigrationNote;
use crate::failure::Failure;
use multifd_transport::Cancel;
use multifd_transport::dial::DIAL_TIMEOUT;
use multifd_transport::incoming::{Acceptor, Incoming};
use multifd_transport::{Address, Circle, Listener, circle};

use crate::leg::{Encryption, Greeter, LegAddress};
use crate::trunk::Name;

/// What a relay does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RelayConfig {
    /// Where it dials for every migration, and what is spoken there.
    pub connect: LegAddress,
    /// The name of its migrations, for a relay that several destinations are behind. One that came
    /// with a name keeps it.
    pub name: Option<Name>,
    /// TLS on both legs, where they have it.
    pub encryption: Encryption,
    /// The method which it writes towards `connect`.
    pub compression: Method,
    /// Payloads that arrive in that method are compressed anew. Otherwise they are passed on as
    /// they are.
    pub recode: bool,
    /// How that method is driven, and who computes on both legs.
    pub settings: Settings,
    /// The effort is found out during each migration, packet by packet, where the method and the
    /// settings leave a [choice](multifd_codec::auto::Auto::new). Otherwise it is that of
    /// `settings`.
    pub auto: bool,
    /// The processors that encoding may take in one migration, if its effort is found out.
    pub processors: Option<f64>,
    /// The bytes of pages that a migration may keep on each side of a trunk, to send differences to
    /// them; 0 for none. All migrations together keep no more than
    /// [`multifd_codec::delta::memory::limit`].
    pub delta_memory: u64,
    /// What it accepts from a source.
    pub limits: Limits,
    /// How long one connection to the destination may take.
    pub dial_timeout: Duration,
    /// The relays of a trunk compare the pages of each round, before it is whole at the
    /// destination. A trunk's server takes no other migrations then.
    pub verify: bool,
    /// How many connections of a trunk carry each multifd channel, or main where there are no
    /// channels: 1 to 16. A server that does not know of this takes one.
    pub trunk_channels: u8,
}

/// A relay, listening.
#[derive(Debug)]
pub struct Relay {
    /// Goes before the acceptor, whose door it stands at.
    greeter: Greeter,
    acceptor: Acceptor,
    leg: LegAddress,
    config: RelayConfig,
}

/// A migration that was delivered.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MigrationReport {
    /// Who the source is, as far as the system names it.
    pub peer: String,
    /// Multifd channels; 0 for a migration without multifd.
    pub channels: usize,
    /// What went through.
    pub totals: Traffic,
    /// `true`: the destination has said that it has the guest. `None`: it could not say so, as the
    /// source has no return path.
    pub confirmed: Option<bool>,
    /// What was out of the ordinary.
    pub remarks: Vec<Remark>,
    /// How payloads from the source were decoded, if any were.
    pub decoded: Option<Work>,
    /// How payloads for the destination were encoded, if any were. One that has the outgoing method
    /// already is passed on, unless [`RelayConfig::recode`] is set.
    pub encoded: Option<Work>,
    /// Which efforts were chosen, if they were found out.
    pub auto: Option<auto::Summary>,
    /// What both relays of a trunk had the same, where they compare it.
    pub verified: Option<Verified>,
    /// Which pages went to another relay as differences, if any could.
    pub differences: Option<delta::Counts>,
    /// What each channel has waited for; main is the first.
    pub waits: Vec<ChannelWaits>,
    /// From the first connection to the last close.
    pub duration: Duration,
}

/// What the codecs of one direction did, over all channels.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Work {
    /// The method read or written.
    pub method: Method,
    /// What computed, at the end of the migration; and why nothing better did, where something
    /// better was asked for.
    pub backend: Backend,
    /// Which way the pages went.
    pub pages: PathCounts,
}

/// What has gone through a relay, over all channels.
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
    /// The guest's memory in bytes, once the set-up has told it; 0 before, and where the stream
    /// cannot be followed.
    pub memory: u64,
    /// Bytes of the guest's memory that all pages so far stand for, zero pages and pages on the
    /// main channel included. While it is less than `memory`, hardly any page has come twice.
    pub carried: u64,
    /// Rounds with pages that have ended, where the main channel shows them: from QEMU 8.1 and its
    /// machine types on.
    pub rounds: u64,
}

/// What was out of the ordinary in a migration that was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remark {
    /// The main channel could not be followed beyond some point.
    NotFollowed(Fault),
    /// The main channel ended behind all memory, and not where it was understood to end.
    EndNotSeen,
    /// The return path could not be followed.
    ReturnPathNotFollowed(Fault),
    /// The destination spoke behind its last word.
    BehindWord,
    /// It switched to postcopy.
    Postcopy,
    /// Postcopy's own connection was passed on.
    Preempt,
    /// COLO began.
    Colo,
    /// The other relay carries channels by fewer connections than it was asked to.
    FewerTrunkChannels {
        /// The fewest for a channel.
        taken: u8,
        /// How many it was asked for.
        wanted: u8,
    },
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFollowed(fault) => {
                write!(f, "the main channel could not be followed, and was passed on ({fault})")
            }
            Self::EndNotSeen => f.write_str(
                "the main channel ended where no end was understood: it was passed on, or the source gave up",
            ),
            Self::ReturnPathNotFollowed(fault) => {
                write!(f, "the return path could not be followed, and was passed on ({fault})")
            }
            Self::BehindWord => f.write_str(
                "the destination spoke behind its last word, and that was not passed on",
            ),
            Self::Postcopy => f.write_str("it switched to postcopy, whose pages are not compressed"),
            Self::Preempt => f.write_str("postcopy's own connection was passed on"),
            Self::Colo => f.write_str("COLO began, which is passed on and not followed"),
            Self::FewerTrunkChannels { taken, wanted } => write!(
                f,
                "the other relay took {taken} of {wanted} trunk channels: it is older, or the \
                 migration has too many"
            ),
        }
    }
}

/// What happens while a migration is passed on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// How far it is: about twice a second, and once more at the end.
    Progress(Traffic),
    /// What each channel has waited for so far, before each [`Progress`](Self::Progress).
    Waits(Vec<ChannelWaits>),
    /// Something that an operator may want to mend.
    Note(MigrationNote),
    /// Packets are encoded with another effort from now on.
    Effort(auto::Change),
}

impl RelayConfig {
    /// Everything as usual.
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
            trunk_channels: 1,
        }
    }

    /// What will compute what is written, as far as it can be known before the first migration.
    ///
    /// # Errors
    /// When nothing here can write the method, or not with the accelerator asked for.
    pub fn backend(&self) -> Result<Backend, Unsupported> {
        Ok(multifd_codec::encoder(self.compression, &self.settings)?.backend())
    }

    /// What will read pages that arrive each by itself, in methods `qpl` and `canned`: an
    /// accelerator reads no others.
    ///
    /// # Errors
    /// When the accelerator asked for cannot.
    pub fn reader(&self) -> Result<Backend, Unsupported> {
        Ok(multifd_codec::decoder(Method::Qpl, &self.settings)?.backend())
    }
}

impl Relay {
    /// Listens on `listen`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(listen: impl Into<LegAddress>, config: RelayConfig) -> io::Result<Relay> {
        let listen = listen.into();
        Self::on(Listener::bind(&listen.address)?, &listen, config)
    }

    /// Serves what comes to `listener`, which listens at the address of `leg`.
    ///
    /// # Errors
    /// When there is no thread to be had.
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

    /// Where it listens: the port is real even if 0 was asked for.
    pub fn address(&self) -> &Address {
        self.acceptor.address()
    }

    /// What it does.
    pub fn config(&self) -> &RelayConfig {
        &self.config
    }

    /// Fails where migrations would come back here, under whatever name and through whichever other
    /// relays of this process. What only a call can show, a migration fails of, before anything of
    /// it is passed on.
    ///
    /// # Errors
    /// The way that migrations would take.
    pub fn check_way(&self) -> Result<(), Circle> {
        match self.config.connect.needs_name() {
            true => Ok(()),
            false => circle::look_ahead(&self.config.connect.address),
        }
    }

    /// From now on no migration begins here; those under way go on.
    pub fn refuse_new(&self) {
        self.acceptor.refuse_new();
        self.greeter.refuse_new();
    }

    /// Where it listens, and what is spoken there.
    pub fn leg(&self) -> &LegAddress {
        &self.leg
    }

    /// Its acceptor, to be told of connections that are passed over.
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// Waits for the next migration. [`pass_on`] passes it on: any number may be passed on at once.
    ///
    /// # Errors
    /// When `cancel` ends the wait, or nothing can be accepted any more.
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
    // A source that is a relay hears why, if it has not been told already.
    session::run(incoming, config, cancel, observe)
        .inspect_err(|failure| source.explain(&failure.explain()))
}
