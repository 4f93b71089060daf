//! A made source and a made destination, with any parts between them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::destination::{self, DestinationBehaviour, DestinationReport};
use crate::net::{Address, Listener, Stop, Trigger};
use crate::plan::Plan;
use crate::source::{self, SourceBehaviour, SourceEnd, SourceReport};
use crate::verdict::{Evidence, Excuse, Part};

/// The outcomes of the ends of one migration.
#[derive(Debug, Clone)]
pub struct Ends {
    /// The source.
    pub source: SourceReport,
    /// The destination.
    pub destination: DestinationReport,
}

/// Moves a guest: the source dials `address`, and the destination accepts at `listener`.
pub fn migrate(
    plan: &Plan,
    behaviour: (&SourceBehaviour, &DestinationBehaviour),
    address: &Address,
    listener: &Listener,
    stop: &Stop,
    passed: &[Arc<Trigger>],
) -> Result<Ends, String> {
    let give_up = Stop::default();
    let (source, destination) = behaviour;
    thread::scope(|scope| {
        let there =
            scope.spawn(|| destination::receive(plan, destination, listener, stop, &give_up, &[]));
        let source = source::send(plan, source, address, stop, passed);
        let patience = match source.end {
            // Bytes on their way may still arrive.
            SourceEnd::Kept | SourceEnd::Killed => Duration::from_millis(150),
            SourceEnd::Gave => Duration::from_secs(2),
        };
        let deadline = Instant::now() + patience;
        while !there.is_finished() && !stop.is_set() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        // This ends only a destination that still waits for connections.
        give_up.stop();
        let destination = there.join().map_err(|_| "a destination panicked")?;
        Ok(Ends {
            source,
            destination,
        })
    })
}

impl Ends {
    /// The observations to judge.
    #[must_use]
    pub fn evidence(
        &self,
        return_path: bool,
        excuse: Excuse,
        parts: Vec<Part>,
        hang: Option<String>,
    ) -> Evidence {
        Evidence {
            excuse,
            return_path,
            source: self.source.end,
            source_ended: self.source.at,
            wrote_all: self.source.wrote_all,
            impatient: self.source.impatient,
            destination: self.destination.end.clone(),
            said: self.destination.said,
            parts,
            leftovers: Vec::new(),
            hang,
        }
    }
}
