//! Connections of a trunk that wait for their strands, at the relay that listens.

use std::collections::HashMap;
use std::mem;
use std::time::Instant;

use multifd_transport::Stream;
use multifd_transport::incoming::HELLO_TIMEOUT;

use crate::trunk::{Refusal, RefusalCode, StrandTerms};

/// The most strands of one migration, beside its connections. A connection that asks for more than
/// are left gets none.
const MOST_STRANDS: usize = 240;

/// The connections of one migration, each a `C`, that wait for strands. Nothing is written to them
/// before all strands have come.
pub(super) struct Gatherings<C> {
    /// The promised number of strands.
    promised: usize,
    waiting: HashMap<u16, Gathering<C>>,
}

struct Gathering<C> {
    first: C,
    /// The strands that have come, by their position.
    more: Vec<Option<Stream>>,
    since: Instant,
}

/// A connection whose strands did not come in time.
pub(super) struct Late<C> {
    pub(super) first: C,
    missing: usize,
    all: usize,
}

impl<C> Gatherings<C> {
    pub(super) fn new() -> Self {
        Self {
            promised: 0,
            waiting: HashMap::new(),
        }
    }

    /// Grants strands, if there are so many left.
    pub(super) fn grant(&self, asked: StrandTerms) -> Option<StrandTerms> {
        let others = usize::from(asked.count).saturating_sub(1);
        let fits = self.promised.saturating_add(others) <= MOST_STRANDS;
        (fits && !self.waiting.contains_key(&asked.group)).then_some(asked)
    }

    /// Lets `first` wait for its strands, which were granted.
    pub(super) fn begin(&mut self, granted: StrandTerms, first: C, now: Instant) {
        let gathering = Gathering {
            first,
            more: (1..granted.count).map(|_| None).collect(),
            since: now,
        };
        self.promised = self.promised.saturating_add(gathering.more.len());
        self.waiting.insert(granted.group, gathering);
    }

    /// Checks that a connection waits for this strand.
    ///
    /// # Errors
    /// The refusal, if none waits.
    pub(super) fn expects(&self, group: u16, number: u8) -> Result<(), Refusal> {
        let unknown = || {
            let words = "no connection waits for this strand";
            Refusal::new(RefusalCode::UNKNOWN_MIGRATION, words)
        };
        let gathering = self.waiting.get(&group).ok_or_else(unknown)?;
        let place = usize::from(number).checked_sub(1);
        match place.and_then(|place| gathering.more.get(place)) {
            Some(None) => Ok(()),
            Some(Some(_)) => Err(Refusal::new(
                RefusalCode::MALFORMED,
                "this strand has come already",
            )),
            None => {
                let words = format!(
                    "strand {number}: this connection has strands 1 to {}",
                    gathering.more.len()
                );
                Err(Refusal::new(RefusalCode::MALFORMED, &words))
            }
        }
    }

    /// Takes an expected strand. If it was the last one, returns its connection with all its
    /// strands.
    pub(super) fn put(
        &mut self,
        group: u16,
        number: u8,
        strand: Stream,
    ) -> Option<(C, Vec<Stream>)> {
        let gathering = self.waiting.get_mut(&group)?;
        let place = usize::from(number).checked_sub(1)?;
        let place = gathering.more.get_mut(place)?;
        *place = Some(strand);
        if gathering.more.iter().any(Option::is_none) {
            return None;
        }
        let Gathering { first, more, .. } = self.waiting.remove(&group)?;
        Some((first, more.into_iter().flatten().collect()))
    }

    /// Takes out the connections that have waited for too long.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<Late<C>> {
        let is_late =
            |gathering: &Gathering<C>| now.duration_since(gathering.since) >= HELLO_TIMEOUT;
        let (late, waiting): (HashMap<_, _>, _) = mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, gathering)| is_late(gathering));
        self.waiting = waiting;
        let late = late.into_values().map(|gathering| Late {
            first: gathering.first,
            missing: gathering
                .more
                .iter()
                .filter(|strand| strand.is_none())
                .count(),
            all: gathering.more.len().saturating_add(1),
        });
        late.collect()
    }
}

impl<C> Late<C> {
    /// The event, for an operator.
    pub(super) fn words(&self) -> String {
        format!(
            "{} of the {} connections that were to carry this one together did not come within \
             {HELLO_TIMEOUT:?}",
            self.missing, self.all
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn strand() -> Stream {
        Stream::from(UnixStream::pair().unwrap().0)
    }

    fn terms(count: u8, group: u16) -> StrandTerms {
        StrandTerms { count, group }
    }

    fn refusal(gatherings: &Gatherings<&str>, group: u16, number: u8) -> RefusalCode {
        gatherings.expects(group, number).unwrap_err().code
    }

    #[test]
    fn a_connection_is_whole_with_its_last_strand() {
        let mut all = Gatherings::new();
        assert_eq!(refusal(&all, 9, 1), RefusalCode::UNKNOWN_MIGRATION);
        all.begin(terms(3, 9), "first", Instant::now());
        assert_eq!(all.grant(terms(2, 9)), None, "its number is in use");
        assert_eq!(refusal(&all, 8, 1), RefusalCode::UNKNOWN_MIGRATION);
        for number in [0, 3, 255] {
            assert_eq!(refusal(&all, 9, number), RefusalCode::MALFORMED);
        }
        all.expects(9, 2).unwrap();
        assert!(all.put(9, 2, strand()).is_none());
        assert_eq!(refusal(&all, 9, 2), RefusalCode::MALFORMED);
        all.expects(9, 1).unwrap();
        let (first, more) = all.put(9, 1, strand()).unwrap();
        assert_eq!((first, more.len()), ("first", 2));
        assert_eq!(refusal(&all, 9, 1), RefusalCode::UNKNOWN_MIGRATION);
    }

    #[test]
    fn their_number_is_bounded() {
        let mut all = Gatherings::new();
        let mut granted = 0;
        for group in 0..100 {
            if let Some(terms) = all.grant(terms(16, group)) {
                all.begin(terms, "", Instant::now());
                granted += usize::from(terms.count) - 1;
            }
        }
        assert_eq!(granted, MOST_STRANDS);
        assert_eq!(all.grant(terms(2, 500)), None);
    }

    #[test]
    fn no_connection_waits_for_ever() {
        let mut all = Gatherings::new();
        let now = Instant::now();
        all.begin(terms(4, 0), "early", now);
        all.begin(terms(2, 1), "later", now + Duration::from_secs(1));
        assert!(all.put(0, 1, strand()).is_none());
        assert!(all.take_late(now + Duration::from_secs(5)).is_empty());
        let late = all.take_late(now + HELLO_TIMEOUT);
        let found: Vec<_> = late.iter().map(|late| (late.first, late.words())).collect();
        let words =
            "2 of the 4 connections that were to carry this one together did not come within 10s";
        assert_eq!(found, [("early", words.to_owned())]);
        all.expects(1, 1).unwrap();
    }
}
