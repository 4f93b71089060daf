//! Shared by the tests of causes.

use crate::cause::Cause;
use crate::facts::{DeviceId, QueueId};
use crate::{Report, Verdict};

/// All devices except the first one of each NUMA node.
pub(super) const LIKEWISE: &str = "# likewise iax3, iax5, iax7, iax11, iax13, iax15";

pub(super) fn devices(numbers: &[u32]) -> Vec<DeviceId> {
    numbers.iter().copied().map(DeviceId).collect()
}

pub(super) fn queue(device: u32, index: u32) -> QueueId {
    QueueId {
        device: DeviceId(device),
        index,
    }
}

/// The first queue of each device.
pub(super) fn queues(numbers: &[u32]) -> Vec<QueueId> {
    numbers.iter().map(|device| queue(*device, 0)).collect()
}

#[track_caller]
pub(super) fn assert_cause(report: &Report, expected: &Cause, short: &str, commands: &[&str]) {
    let Verdict::NotReady {
        cause,
        summary,
        explanation,
        mend,
    } = &report.verdict
    else {
        panic!("{}", report.verdict);
    };
    assert_eq!(cause, expected);
    assert_eq!(summary, short);
    assert_eq!(report.verdict.to_string(), format!("no IAA: {short}"));
    assert_sentence(explanation);
    assert_eq!(mend, commands);
    let obstacle = report.obstacle().unwrap();
    assert_eq!(obstacle.to_string(), short);
    assert_eq!(obstacle.mend(), commands);
    let written = serde_json::to_value(report).unwrap();
    assert_eq!(written["verdict"]["cause"], obstacle.name());
    // A refusal by libqpl means the same.
    for status in 500..=503 {
        assert_eq!(&explained(report, status), expected);
    }
}

#[track_caller]
pub(super) fn assert_sentence(text: &str) {
    assert!(text.ends_with('.') && !text.contains('\n'), "{text}");
}

/// For causes that files alone do not show.
#[track_caller]
pub(super) fn assert_explained(
    report: &Report,
    status: u32,
    expected: &Cause,
    short: &str,
    commands: &[&str],
) {
    let obstacle = report.explain_status(status).unwrap();
    assert_eq!(&obstacle.cause, expected);
    assert_eq!(obstacle.to_string(), short);
    assert_sentence(&obstacle.explanation());
    assert_eq!(obstacle.mend(), commands);
    let written = serde_json::to_value(expected).unwrap();
    assert_eq!(written["cause"], obstacle.name());
}

/// The cause of a status that has one.
#[track_caller]
pub(super) fn explained(report: &Report, status: u32) -> Cause {
    report.explain_status(status).unwrap().cause
}

#[track_caller]
pub(super) fn assert_ready(report: &Report) {
    assert!(
        matches!(report.verdict, Verdict::Ready { .. }),
        "{}",
        report.verdict
    );
}
