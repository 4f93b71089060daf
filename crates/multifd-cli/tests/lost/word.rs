//! The destination's last word.

use super::super::support::made::{Shape, short};
use super::super::support::peers::{Destination, PONG, Role, SHUT_FAILED, SHUT_WELL, Source};
use super::super::{a_while, fails_with, parse, relay};

/// A source decides at the first one, and is told no other.
#[test]
fn the_first_word_counts() {
    for well in [true, false] {
        for pauses in [false, true] {
            let migration = short(&Shape {
                return_path: true,
                ..Shape::default()
            });
            let folder = tempfile::tempdir().expect("a folder");
            let destination = Destination::new(folder.path(), 2);
            let mut relay = relay(folder.path(), &destination.address, &["--once"]);
            let source = Source::begin(&relay.address(), &migration);
            drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
            let words = match well {
                true => [SHUT_WELL, SHUT_FAILED],
                false => [SHUT_FAILED, SHUT_WELL],
            };
            if pauses && well {
                destination.say(Role::Main, &words[0]);
                a_while();
                destination.say(Role::Main, &words[1]);
            } else {
                destination.say(Role::Main, &words.concat());
            }
            assert_eq!(source.hears(&words[0]), [PONG, words[0]].concat());
            a_while();
            source.finish();
            destination.close_all();
            assert!(source.hears(&words[1]).is_empty(), "nothing is behind it");
            let ended = relay.end();
            match well {
                true => {
                    let report = parse(&ended.well());
                    assert_eq!(report["confirmed"], true, "{report}");
                    let remarks = report["remarks"].to_string();
                    assert!(remarks.contains("after its final message"), "{report}");
                }
                false => {
                    fails_with(&ended, &["destination side"]);
                    assert_eq!(parse(&ended.stdout)["confirmed"], false);
                }
            }
        }
    }
}
