//! One migration through a relay of this process, in a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use multifd_relay::relay::{ChannelWaits, MigrationReport, Relay, Traffic, Update, pass_on};
use multifd_transport::Cancel;
use multifd_transport::failure::Cause as TransportCause;

use crate::failure::{Cause, chain};
use crate::news::News;

/// How the relay's part has ended.
pub(crate) type Outcome = Result<Box<MigrationReport>, Cause>;

enum Told {
    Begun(String),
    Update(Update),
    Note(String),
    Ended(Outcome),
}

/// A relay that carries one migration.
pub(crate) struct Carrier {
    told: Receiver<Told>,
    /// Ends the wait for a migration, and the migration.
    cancel: Cancel,
    thread: Option<JoinHandle<()>>,
    pub(crate) traffic: Traffic,
    pub(crate) waits: Vec<ChannelWaits>,
    pub(crate) has_begun: bool,
    /// Postcopy has begun, as the relay sees it in the stream.
    pub(crate) is_in_postcopy: bool,
    /// The number of the source's channels, if the destination does not begin to load.
    pub(crate) not_begun: Option<usize>,
    /// How it has ended.
    pub(crate) outcome: Option<Outcome>,
}

impl Carrier {
    /// Waits for one migration at `relay`, and passes it on.
    pub(crate) fn start(relay: Relay) -> Result<Self, Cause> {
        let (tell, told) = mpsc::channel();
        let cancel = Cancel::new();
        let notes = tell.clone();
        relay.acceptor().on_note(move |note| {
            // Once the migration is over, the receiver is gone.
            let _ = notes.send(Told::Note(note.to_string()));
        });
        let wish = cancel.clone();
        let work = move || {
            let updates = tell.clone();
            let carried = catch_unwind(AssertUnwindSafe(|| carry(relay, &wish, &updates)));
            let _ = tell.send(Told::Ended(carried.unwrap_or(Err(Cause::Defect))));
        };
        let thread = thread::Builder::new().name("relay".to_owned()).spawn(work);
        let thread = thread.map_err(|error| {
            Cause::from(multifd_relay::Failure::here(
                TransportCause::thread(error).into(),
            ))
        })?;
        Ok(Self {
            told,
            cancel,
            thread: Some(thread),
            traffic: Traffic::default(),
            waits: Vec::new(),
            has_begun: false,
            is_in_postcopy: false,
            not_begun: None,
            outcome: None,
        })
    }

    /// Takes the relay's reports since the last call.
    pub(crate) fn look(&mut self, observe: &mut dyn FnMut(News)) {
        while let Ok(told) = self.told.try_recv() {
            match told {
                Told::Begun(peer) => {
                    self.has_begun = true;
                    observe(News::Begun(peer));
                }
                Told::Update(Update::Progress(traffic)) => self.traffic = traffic,
                Told::Update(Update::Postcopy) => self.is_in_postcopy = true,
                Told::Update(Update::Waits(waits)) => self.waits = waits,
                Told::Update(Update::Note(note)) => match note.not_begun() {
                    Some(channels) => self.not_begun = Some(channels),
                    None => observe(News::Note(note.to_string())),
                },
                Told::Update(_) => {}
                Told::Note(note) => observe(News::Note(note)),
                Told::Ended(outcome) => {
                    if let Ok(report) = &outcome {
                        self.traffic = report.totals;
                    }
                    self.outcome = Some(outcome);
                }
            }
        }
    }

    /// Ends the migration, unless its destination has said that it has the guest.
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Whether the destination has said that it has the guest, and the source has got that word.
    pub(crate) fn has_delivered(&self) -> bool {
        matches!(&self.outcome, Some(Ok(report)) if report.confirmed == Some(true))
    }

    /// Why it has failed, in words.
    pub(crate) fn words(&self) -> Option<String> {
        match &self.outcome {
            Some(Err(cause)) => Some(chain(cause)),
            _ => None,
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            // Its panic was reported. Every wait of a relay ends.
            let _ = thread.join();
        }
    }
}

fn carry(mut relay: Relay, cancel: &Cancel, updates: &mpsc::Sender<Told>) -> Outcome {
    let incoming = relay.accept(cancel)?;
    relay.refuse_new();
    let _ = updates.send(Told::Begun(incoming.peer.clone()));
    let mut observe = |update| {
        let _ = updates.send(Told::Update(update));
    };
    let report = pass_on(incoming, relay.config(), cancel, &mut observe)?;
    Ok(Box::new(report))
}
