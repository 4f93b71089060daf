//! Listening sockets that files in a folder ask for.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use multifd_relay::leg::{LegAddress, Name};
use multifd_relay::relay::{Relay, RelayConfig};
use multifd_transport::failure::NoThread;
use multifd_transport::{Address, Cancel, ListenOptions};

use super::requests::{FileNumber, Odd, Requests};
use super::{Ends, Event, Route, accept, notes};
use crate::say;

/// Time between two looks at the folder.
const LOOK: Duration = Duration::from_millis(200);

/// Sockets that were asked for and are listened on at once, over all folders. Each has three
/// threads.
const MOST_SOCKETS: usize = 1024;

/// Odd files that are remembered, so that each is reported once.
const MOST_TOLD: usize = 1024;

static SOCKETS: AtomicUsize = AtomicUsize::new(0);

/// Watches one folder.
pub(super) struct Watch {
    requests: Requests,
    route: Route,
    config: RelayConfig,
    mode: u32,
    standing: HashMap<Name, Standing>,
    /// Sockets that are gone, and whose migrations may run.
    ending: Vec<JoinHandle<()>>,
    told: HashSet<String>,
    /// The folder cannot be read, which was reported.
    is_lost: bool,
}

/// A socket that was asked for.
struct Standing {
    file: FileNumber,
    given_up: Cancel,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Watches the folder of a listening address with `{name}`.
    ///
    /// # Errors
    ///
    /// When the folder cannot be used.
    pub(super) fn new(route: Route, config: RelayConfig, mode: u32) -> Result<Self, String> {
        let requests = Requests::of(&route.listen).map_err(|error| say::chain(&error))?;
        requests.check().map_err(|error| say::chain(&error))?;
        Ok(Self {
            requests,
            route,
            config,
            mode,
            standing: HashMap::new(),
            ending: Vec::new(),
            told: HashSet::new(),
            is_lost: false,
        })
    }

    /// Listens where files ask for it, until no more migrations are accepted. No socket stays.
    pub(super) fn run(mut self, tell: &Sender<Event>, ends: &Ends) {
        while !ends.accepting.is_cancelled() {
            self.look(tell, ends);
            thread::sleep(LOOK);
        }
        for (_, standing) in self.standing.drain() {
            standing.given_up.cancel();
            self.ending.push(standing.thread);
        }
        for thread in self.ending {
            // Its panic was reported, and nothing is left of it.
            let _ = thread.join();
        }
    }

    fn look(&mut self, tell: &Sender<Event>, ends: &Ends) {
        let note = |note: String| {
            // Once this command ends, nothing is printed.
            let _ = tell.send(Event::Note(note));
        };
        let requests = &self.requests;
        let gone = self.standing.extract_if(|name, standing| {
            let is_over = standing.thread.is_finished();
            is_over || FileNumber::of(&requests.path(name)) != Some(standing.file)
        });
        for (name, standing) in gone {
            standing.given_up.cancel();
            self.ending.push(standing.thread);
            SOCKETS.fetch_sub(1, Ordering::AcqRel);
            note(format!(
                "guest {name}: its socket was removed, and is listened on no more"
            ));
        }
        self.ending.retain(|thread| !thread.is_finished());
        let look = match self.requests.look(&|name| self.standing.contains_key(name)) {
            Ok(look) => look,
            Err(error) => {
                if !std::mem::replace(&mut self.is_lost, true) {
                    let folder = say::printable_path(self.requests.folder());
                    note(format!(
                        "cannot read {folder}: {error}; no sockets are made there: make it again, and \
                         start the relay anew"
                    ));
                }
                return;
            }
        };
        self.is_lost = false;
        for (file, odd) in look.odd {
            let path = say::printable_path(&self.requests.folder().join(file));
            let reason = match &odd {
                Odd::Name(fault) => format!("{odd}: {fault}"),
                Odd::NotEmpty => odd.to_string(),
            };
            self.tell_once(&format!("{path} {reason}"), &note);
        }
        for name in look.asked {
            if SOCKETS.fetch_add(1, Ordering::AcqRel) >= MOST_SOCKETS {
                SOCKETS.fetch_sub(1, Ordering::AcqRel);
                let words = "sockets are asked for and listened on already: remove some";
                self.tell_once(&format!("{MOST_SOCKETS} {words}"), &note);
                return;
            }
            match self.listen(&name, tell, ends) {
                Ok(standing) => {
                    note(format!("guest {name}: listening on {}", self.leg(&name)));
                    self.standing.insert(name, standing);
                }
                Err(error) => {
                    SOCKETS.fetch_sub(1, Ordering::AcqRel);
                    self.tell_once(&format!("guest {name}: {error}"), &note);
                }
            }
        }
    }

    fn leg(&self, name: &Name) -> LegAddress {
        LegAddress::qemu(Address::Unix(self.requests.path(name)))
    }

    fn listen(&self, name: &Name, tell: &Sender<Event>, ends: &Ends) -> Result<Standing, String> {
        let leg = self.leg(name);
        let mut options = ListenOptions::default();
        options.mode = self.mode;
        options.over_request = true;
        let listener = say::listener_with(&leg.address, &options)?;
        let gone = || "its socket was removed at once".to_owned();
        let file = FileNumber::of(&self.requests.path(name)).ok_or_else(gone)?;
        let mut config = self.config.clone();
        config.name = Some(name.clone());
        let words = |error: io::Error| say::chain(&error);
        let relay = Relay::on(listener, &leg, config).map_err(words)?;
        relay.check_way().map_err(|circle| circle.to_string())?;
        relay.acceptor().on_note(notes(tell));
        let route = Arc::new(Route {
            listen: leg,
            connect: self.route.connect.clone(),
        });
        let given_up = Cancel::new();
        let (tell, ends, its_end) = (tell.clone(), ends.clone(), given_up.clone());
        let work = move || accept(relay, &route, &tell, &ends, Some(&its_end));
        let thread = thread::Builder::new()
            .spawn(work)
            .map_err(|error| words(NoThread::io(error)))?;
        Ok(Standing {
            file,
            given_up,
            thread,
        })
    }

    fn tell_once(&mut self, words: &str, note: &dyn Fn(String)) {
        if self.told.len() >= MOST_TOLD {
            self.told.clear();
        }
        if self.told.insert(words.to_owned()) {
            note(words.to_owned());
        }
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "listening on {}, where empty files ask for it",
            self.route.listen
        )
    }
}
