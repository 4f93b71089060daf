//! The host's checks on the machine that runs the tests.

use std::path::Path;

use crate::facts::{NodeAccess, Portal};
use crate::host::{Host as _, System};
use crate::{Verdict, detect_on};

/// Detection reports on any machine, with or without an IAA.
#[test]
fn this_machine() {
    let report = detect_on(Path::new("/"), &System);
    println!("{report}");
    assert!(report.facts.process.user.is_some());
    assert!(report.facts.process.cpus.is_some());
    assert!(report.facts.kernel.version.is_some());
    match &report.verdict {
        Verdict::Ready { queues, .. } => assert!(!queues.is_empty()),
        Verdict::NotReady { mend, .. } => assert!(!mend.is_empty()),
    }
}

/// Two devices of every Linux stand in for a work queue: one maps, the other does not.
#[test]
fn opening_and_mapping() {
    assert_eq!(
        System.node(Path::new("/dev/zero")),
        NodeAccess::Opened {
            portal: Portal::Mapped
        }
    );
    let NodeAccess::Opened {
        portal: Portal::Refused { error },
    } = System.node(Path::new("/dev/null"))
    else {
        panic!("/dev/null maps");
    };
    assert!(error.contains("No such device"), "{error}");
    assert_eq!(
        System.node(Path::new("/dev/iax/wq4294967295.0")),
        NodeAccess::Missing
    );
    assert_eq!(
        System.node(Path::new("/proc/self/status")),
        NodeAccess::NotADevice
    );
}
