//! The verdict on a migration: which outcomes are allowed.
//!
//! | source's guest | destination | return path | allowed | class |
//! | --- | --- | --- | --- | --- |
//! | given up | has the whole guest | either | always | delivered |
//! | runs | failed, refused, or never began | either | if something was broken | kept |
//! | given up | has no guest | yes | never: neither end has the guest | |
//! | given up | has no guest | no | if something was broken, and no part reports success | unknown |
//! | runs | has the whole guest | either | if the source took its guest back after it had written its last byte | gap |
//! | killed | has no guest | either | if the campaign killed the source | gone |
//! | any | frozen | either | if the destination's own connection was broken | |
//! | any | received bytes that no source sent | either | never | |
//!
//! The gap is QEMU's own: the destination starts the guest before the source hears of it, and a
//! source can be cancelled between its last byte and its completion. A relay cannot close the gap.
//! But it must not report success once it has seen the source close.
//!
//! The verdict covers each part between the ends, too. A part reports success only if the
//! destination said SHUT(0), or if the report states that the success is unconfirmed. Afterwards
//! the part has no more descriptors and threads than before, and leaves no file.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::destination::DestinationEnd;
use crate::process::Counts;
use crate::source::SourceEnd;

/// The outcomes that a run's faults excuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Excuse {
    /// The migration may fail.
    pub failure: bool,
    /// The migration may stand still until the source's user cancels it.
    pub standstill: bool,
    /// The destination may freeze, because its own connections were broken.
    pub freeze: bool,
    /// The most pages that may be wrong, because unprotected bytes were changed.
    pub wrong_pages: usize,
    /// The source may take its guest back while the destination's SHUT is on its way.
    pub gap: bool,
}

/// A part's report on a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It failed, for this reason.
    Failure(String),
    /// It succeeded. `None` if the report does not mention a confirmation.
    Success(Option<Confirmed>),
}

/// The confirmation in a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// The destination has confirmed the guest.
    Yes,
    /// The destination has refused the guest.
    No,
    /// The destination cannot confirm it.
    Unknown,
}

impl Report {
    /// Reads a report from a line of JSON. It ignores other fields.
    #[must_use]
    pub fn of(line: &Value) -> Self {
        if let Some(error) = line.get("error").filter(|error| !error.is_null()) {
            return Self::Failure(error.to_string());
        }
        Self::Success(line.get("confirmed").map(|confirmed| match confirmed {
            Value::Bool(true) => Confirmed::Yes,
            Value::Bool(false) => Confirmed::No,
            _ => Confirmed::Unknown,
        }))
    }
}

/// A part between the ends.
#[derive(Debug, Clone)]
pub struct Part {
    /// The part's name.
    pub name: String,
    /// Its reports on this migration.
    pub reports: Vec<Report>,
    /// The campaign killed it.
    pub killed: bool,
    /// It ended by itself, with these last words.
    pub died: Option<String>,
    /// Its open resources before and after the run.
    pub counts: Option<[Counts; 2]>,
    /// It is the part next to the source.
    pub near: bool,
}

/// The observations of a run.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The outcomes that the run's faults excuse.
    pub excuse: Excuse,
    /// The destination has a return path.
    pub return_path: bool,
    /// The end of the source's guest.
    pub source: SourceEnd,
    /// The time at which the source ended.
    pub source_ended: Instant,
    /// The source had written every byte.
    pub wrote_all: bool,
    /// The source's user cancelled it, because it stood still.
    pub impatient: bool,
    /// The end of the destination.
    pub destination: DestinationEnd,
    /// The time at which the destination said that it has the guest.
    pub said: Option<Instant>,
    /// The parts between source and destination.
    pub parts: Vec<Part>,
    /// Files that parts left behind.
    pub leftovers: Vec<String>,
    /// The thing that had not ended within the time limit.
    pub hang: Option<String>,
}

/// The place of the guest after a run that broke no promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// At the destination.
    Delivered,
    /// At the source.
    Kept,
    /// No part can know it, and none reports success.
    Unknown,
    /// At both, as QEMU alone would have it.
    Gap,
    /// Nowhere: the campaign killed the source with its guest.
    Gone,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivered => "delivered",
            Self::Kept => "kept",
            Self::Unknown => "unknown",
            Self::Gap => "gap",
            Self::Gone => "gone",
        })
    }
}

/// Judges a run. Returns the place of the guest, or the broken promises.
pub fn judge(evidence: &Evidence) -> Result<Class, Vec<String>> {
    let mut faults = Vec::new();
    let class = ends(evidence, &mut faults);
    for part in &evidence.parts {
        judge_part(evidence, class, part, &mut faults);
    }
    let excuse = evidence.excuse;
    if evidence.impatient && !excuse.standstill {
        faults.push("hang: nothing moved until the source's user cancelled".to_owned());
    }
    if !excuse.failure && class.is_some_and(|class| class != Class::Delivered) {
        faults.push("failed: nothing was broken, but the guest was not delivered".to_owned());
    }
    faults.extend(evidence.hang.iter().map(|hang| format!("hang: {hang}")));
    faults.extend(
        evidence
            .leftovers
            .iter()
            .map(|left| format!("left over: {left}")),
    );
    match class {
        Some(class) if faults.is_empty() => Ok(class),
        _ => Err(faults),
    }
}

/// Judges the two ends.
fn ends(evidence: &Evidence, faults: &mut Vec<String>) -> Option<Class> {
    let excuse = evidence.excuse;
    match &evidence.destination {
        DestinationEnd::Frozen(why) if !excuse.freeze => {
            faults.push(format!("frozen: {why}"));
        }
        DestinationEnd::Corrupt(why) => faults.push(format!("corrupt: {why}")),
        DestinationEnd::Stuck(why) => faults.push(format!("hang: the destination: {why}")),
        DestinationEnd::Loaded(wrong) if wrong.len() > excuse.wrong_pages => {
            let some: Vec<_> = wrong.iter().take(5).cloned().collect();
            faults.push(format!("wrong: {} pages: {}", wrong.len(), some.join(", ")));
        }
        _ => {}
    }
    let there = match &evidence.destination {
        DestinationEnd::Loaded(_) => true,
        DestinationEnd::Killed(had) => *had,
        _ => false,
    };
    let class = match (evidence.source, there) {
        (SourceEnd::Gave | SourceEnd::Killed, true) => Class::Delivered,
        (SourceEnd::Kept, false) => Class::Kept,
        (SourceEnd::Killed, false) => Class::Gone,
        (SourceEnd::Gave, false) if !evidence.return_path && excuse.failure => Class::Unknown,
        (SourceEnd::Gave, false) => {
            let end = &evidence.destination;
            faults.push(format!(
                "neither: the source gave its guest up, destination: {end:?}"
            ));
            return None;
        }
        (SourceEnd::Kept, true) if evidence.wrote_all && excuse.gap => Class::Gap,
        (SourceEnd::Kept, true) => {
            faults.push("both: the guest runs at both ends".to_owned());
            return None;
        }
    };
    Some(class)
}

fn judge_part(evidence: &Evidence, class: Option<Class>, part: &Part, faults: &mut Vec<String>) {
    let name = &part.name;
    if let Some(words) = &part.died {
        faults.push(format!("ended: {name} ended by itself: {words}"));
    }
    if let Some([before, after]) = part.counts {
        if after.files > before.files {
            let (before, after) = (before.files, after.files);
            faults.push(format!(
                "leak: {name} has {after} descriptors, before: {before}"
            ));
        }
        if after.threads > before.threads {
            let (before, after) = (before.threads, after.threads);
            faults.push(format!(
                "leak: {name} has {after} threads, before: {before}"
            ));
        }
    }
    if part.killed {
        return;
    }
    let mut successes = 0;
    for report in &part.reports {
        match report {
            Report::Failure(error) => {
                if class == Some(Class::Delivered) && !evidence.excuse.failure {
                    faults.push(format!(
                        "words: {name} reports failure of a migration that succeeded: {error}"
                    ));
                }
            }
            Report::Success(confirmed) => {
                successes += 1;
                judge_success(evidence, class, part, *confirmed, faults);
            }
        }
    }
    if class == Some(Class::Delivered) && !evidence.excuse.failure && successes == 0 {
        faults.push(format!(
            "words: {name} has not reported a migration that succeeded"
        ));
    }
}

fn judge_success(
    evidence: &Evidence,
    class: Option<Class>,
    part: &Part,
    confirmed: Option<Confirmed>,
    faults: &mut Vec<String>,
) {
    let name = &part.name;
    // Without a return path there is no SHUT, and a success that is not called unconfirmed is a
    // claim.
    let claims = match confirmed {
        Some(Confirmed::Yes) => true,
        Some(Confirmed::Unknown) => evidence.return_path,
        Some(Confirmed::No) => false,
        None => evidence.return_path || class != Some(Class::Delivered),
    };
    if !evidence.return_path && confirmed == Some(Confirmed::Yes) {
        faults.push(format!(
            "words: {name} reports a confirmed success, but there is no return path"
        ));
    } else if claims && evidence.said.is_none() {
        faults.push(format!(
            "words: {name} reports success, but the destination never did"
        ));
    } else if claims && class == Some(Class::Gap) && part.near {
        let said = evidence.said.unwrap_or(evidence.source_ended);
        if said > evidence.source_ended + GRACE {
            faults.push(format!(
                "words: {name} reports success, but the source had taken its guest back"
            ));
        }
    }
}

/// The time by which a relay may learn of one end's actions late, on a busy machine.
const GRACE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Evidence {
        let now = Instant::now();
        let counts = Counts {
            files: 8,
            threads: 2,
        };
        Evidence {
            excuse: Excuse::default(),
            return_path: true,
            source: SourceEnd::Gave,
            source_ended: now,
            wrote_all: true,
            impatient: false,
            destination: DestinationEnd::Loaded(Vec::new()),
            said: Some(now),
            parts: vec![Part {
                name: "relay".to_owned(),
                reports: vec![Report::Success(Some(Confirmed::Yes))],
                killed: false,
                died: None,
                counts: Some([counts; 2]),
                near: true,
            }],
            leftovers: Vec::new(),
            hang: None,
        }
    }

    fn broken() -> Evidence {
        let mut evidence = sound();
        evidence.excuse.failure = true;
        evidence.excuse.gap = true;
        evidence.source = SourceEnd::Kept;
        evidence.destination = DestinationEnd::Failed("a reset".to_owned());
        evidence.said = None;
        evidence.parts[0].reports = vec![Report::Failure("a reset".to_owned())];
        evidence
    }

    #[track_caller]
    fn assert_fault(evidence: &Evidence, word: &str) {
        let faults = judge(evidence).expect_err("a promise is broken");
        assert!(
            faults.iter().any(|fault| fault.starts_with(word)),
            "{word}: {faults:?}"
        );
    }

    #[test]
    fn allowed_outcomes_have_their_classes() {
        assert_eq!(judge(&sound()), Ok(Class::Delivered));
        assert_eq!(judge(&broken()), Ok(Class::Kept));
        let mut unknown = broken();
        unknown.return_path = false;
        unknown.source = SourceEnd::Gave;
        assert_eq!(judge(&unknown), Ok(Class::Unknown));
        unknown.parts[0].reports = vec![Report::Success(Some(Confirmed::Unknown))];
        assert_eq!(judge(&unknown), Ok(Class::Unknown));
    }

    #[test]
    fn a_wrong_page_is_found() {
        let mut evidence = sound();
        evidence.destination = DestinationEnd::Loaded(vec!["pc.ram page 7".to_owned()]);
        assert_fault(&evidence, "wrong");
        evidence.excuse.wrong_pages = 1;
        assert_eq!(judge(&evidence), Ok(Class::Delivered));
        evidence.destination = DestinationEnd::Corrupt("a block that does not exist".to_owned());
        assert_fault(&evidence, "corrupt");
    }

    #[test]
    fn a_guest_at_both_ends_or_at_neither_is_found() {
        let mut both = sound();
        both.source = SourceEnd::Kept;
        assert_fault(&both, "both");
        both.excuse.failure = true;
        both.excuse.gap = true;
        assert_eq!(judge(&both), Ok(Class::Gap));
        both.wrote_all = false;
        assert_fault(&both, "both");

        let mut neither = broken();
        neither.source = SourceEnd::Gave;
        assert_fault(&neither, "neither");
        neither.return_path = false;
        neither.excuse.failure = false;
        assert_fault(&neither, "neither");
    }

    #[test]
    fn success_without_the_destinations_word_is_found() {
        let mut claimed = broken();
        for confirmed in [None, Some(Confirmed::Yes), Some(Confirmed::Unknown)] {
            claimed.parts[0].reports = vec![Report::Success(confirmed)];
            assert_fault(&claimed, "words");
        }
        let mut without = sound();
        without.return_path = false;
        assert_fault(&without, "words");
        without.parts[0].reports = vec![Report::Success(Some(Confirmed::Unknown))];
        assert_eq!(judge(&without), Ok(Class::Delivered));
        let mut lost = broken();
        lost.return_path = false;
        lost.source = SourceEnd::Gave;
        lost.parts[0].reports = vec![Report::Success(None)];
        assert_fault(&lost, "words");
    }

    #[test]
    fn a_success_after_the_source_has_gone_is_found() {
        let mut evidence = sound();
        evidence.source = SourceEnd::Kept;
        evidence.excuse = broken().excuse;
        evidence.said = Some(evidence.source_ended + 2 * GRACE);
        assert_fault(&evidence, "words");
        evidence.parts[0].reports = vec![Report::Failure("the source has gone".to_owned())];
        assert_eq!(judge(&evidence), Ok(Class::Gap));
    }

    #[test]
    fn a_good_migration_that_is_called_failed_or_not_mentioned_is_found() {
        let mut evidence = sound();
        evidence.parts[0].reports.clear();
        assert_fault(&evidence, "words");
        evidence.parts[0].reports = vec![Report::Failure("something".to_owned())];
        assert_fault(&evidence, "words");
    }

    #[test]
    fn hangs_are_found() {
        let mut evidence = broken();
        evidence.impatient = true;
        assert_fault(&evidence, "hang");
        evidence.excuse.standstill = true;
        assert_eq!(judge(&evidence), Ok(Class::Kept));
        evidence.hang = Some("a relay".to_owned());
        assert_fault(&evidence, "hang");
        let mut stuck = broken();
        stuck.destination = DestinationEnd::Stuck("main waits".to_owned());
        assert_fault(&stuck, "hang");
        stuck.destination = DestinationEnd::Frozen("channel 1".to_owned());
        assert_fault(&stuck, "frozen");
    }

    #[test]
    fn leftovers_are_found() {
        let mut evidence = sound();
        evidence.leftovers = vec!["pc.ram.partial".to_owned()];
        assert_fault(&evidence, "left over");
        for (files, threads) in [(1, 0), (0, 1)] {
            let mut evidence = sound();
            let counts = evidence.parts[0].counts.as_mut().expect("counts");
            counts[1].files += files;
            counts[1].threads += threads;
            assert_fault(&evidence, "leak");
        }
        let mut evidence = sound();
        evidence.parts[0].died = Some("a panic".to_owned());
        assert_fault(&evidence, "ended");
    }

    #[test]
    fn a_failure_without_a_cause_is_found() {
        let mut evidence = broken();
        evidence.excuse = Excuse::default();
        assert_fault(&evidence, "failed");
    }

    #[test]
    fn reports_are_read_and_other_fields_ignored() {
        let report = |text: &str| Report::of(&serde_json::from_str(text).expect("JSON"));
        assert_eq!(report(r#"{"pages":1}"#), Report::Success(None));
        assert_eq!(
            report(r#"{"confirmed":null}"#),
            Report::Success(Some(Confirmed::Unknown))
        );
        assert_eq!(
            report(r#"{"error":null,"confirmed":true}"#),
            Report::Success(Some(Confirmed::Yes))
        );
        assert!(matches!(
            report(r#"{"error":"x","confirmed":false}"#),
            Report::Failure(_)
        ));
    }
}
