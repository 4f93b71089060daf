//! Migrations that a relay cannot judge by itself, and which the destination confirms.

use std::io::{Read, Write};
use std::thread;

use multifd_relay::relay::Relay;
use multifd_transport::Stream;
use multifd_transport::incoming::Acceptor;
use multifd_wire::Method;

use super::{END, PONG, Whole, accept, channel_bytes, config, main_bytes, unix};

/// All is well.
const CONFIRMATION: &[u8] = b"\0\x01\0\x04\0\0\0\0";

/// The source closes as soon as it has the destination's word: often enough that it would win a
/// race.
#[test]
fn the_destinations_word_counts_more_than_what_is_understood() {
    let whole = main_bytes(true);
    let setup = &whole[..whole.len() - END.len()];
    // Without the description of devices, and with an element that no QEMU has so far.
    let undescribed = whole[..whole.len() - b"\x06\0\0\0\x02{}".len()].to_vec();
    let unknown = [setup, b"\x55\0\0\0\x02{}"].concat();
    let channel = channel_bytes(0, 1, Method::None);
    for main in [undescribed, unknown] {
        let folder = tempfile::tempdir().unwrap();
        let [listen, connect] = ["relay", "destination"].map(|name| unix(folder.path(), name));
        let mut destination = Acceptor::bind(&connect).unwrap();
        let mut relay = Relay::bind(&listen, config(&connect, Method::None)).unwrap();
        for attempt in 0..30 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let stream = Stream::connect(&listen).unwrap();
                    let other = Stream::connect(&listen).unwrap();
                    (&stream).write_all(&main).unwrap();
                    (&other).write_all(&channel).unwrap();
                    let mut answer = vec![0; PONG.len() + CONFIRMATION.len()];
                    (&stream).read_exact(&mut answer).unwrap();
                    assert_eq!(answer, [PONG, CONFIRMATION].concat());
                });
                scope.spawn(|| {
                    let Whole { incoming, channels } = accept(&mut destination, 1);
                    (&*incoming.main).write_all(PONG).unwrap();
                    let mut rest = vec![0; main.len() - incoming.main_start.len()];
                    thread::scope(|scope| {
                        scope.spawn(|| (&channels[0].stream).read_to_end(&mut Vec::new()).unwrap());
                        (&*incoming.main).read_exact(&mut rest).unwrap();
                        (&*incoming.main).write_all(CONFIRMATION).unwrap();
                    });
                });
                let outcome = relay.serve_one(&mut |_| {});
                assert!(
                    outcome.is_ok(),
                    "attempt {attempt}: {}",
                    outcome.unwrap_err().explain()
                );
            });
        }
    }
}
