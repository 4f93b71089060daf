//! Whether a source has certainly heard the destination's word.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;

use multifd_relay::Failure;
use multifd_relay::failure::Cause;
use multifd_relay::leg::LegAddress;
use multifd_relay::relay::{MigrationReport, Relay, RelayConfig};
use multifd_transport::incoming::Acceptor;
use multifd_transport::{Address, Stream};
use multifd_wire::Method;

use super::{PONG, Whole, accept, channel_bytes, main_bytes};

const CONFIRMATION: &[u8] = b"\0\x01\0\x04\0\0\0\0";

/// More than the window of a connection whose peer does not read, and less than the system takes to
/// be sent.
const MANY_PONGS: usize = (512 << 10) / PONG.len();

/// Carries a migration through relays with these addresses. The source closes its window before the
/// destination's word and reads nothing, so its host never acknowledges that word.
fn deaf(legs: &[&str]) -> Vec<Result<MigrationReport, Failure>> {
    let tcp: Address = "tcp:127.0.0.1:0".parse().unwrap();
    let mut destination = Acceptor::bind(&tcp).unwrap();
    let mut to = LegAddress::qemu(destination.address().clone());
    let mut relays = Vec::new();
    for leg in legs.iter().rev() {
        let leg: LegAddress = leg.parse().unwrap();
        let relay = Relay::bind(leg, RelayConfig::new(to, Method::None)).unwrap();
        to = relay.leg().clone();
        relays.push(relay);
    }
    let (tell, is_over) = mpsc::channel::<()>();
    let address = to.address;
    thread::scope(|scope| {
        scope.spawn(move || {
            let [main, other] = [(); 2].map(|()| Stream::connect(&address).unwrap());
            (&main).write_all(&main_bytes(true)).unwrap();
            (&other)
                .write_all(&channel_bytes(0, 1, Method::None))
                .unwrap();
            // It neither reads nor closes.
            let _ = is_over.recv();
        });
        let destination = &mut destination;
        scope.spawn(move || {
            let Whole { incoming, channels } = accept(destination, 1);
            let main = &*incoming.main;
            (&*main).write_all(PONG).unwrap();
            thread::scope(|scope| {
                let channel = &channels[0].stream;
                scope.spawn(move || channel.drain());
                let mut rest = vec![0; main_bytes(true).len() - incoming.main_start.len()];
                (&*main).read_exact(&mut rest).unwrap();
                let words = [&PONG.repeat(MANY_PONGS), CONFIRMATION].concat();
                (&*main).write_all(&words).unwrap();
                main.drain();
            });
        });
        let serving: Vec<_> = relays
            .iter_mut()
            .map(|relay| scope.spawn(|| relay.serve_one(&mut |_| {})))
            .collect();
        let outcomes = serving.into_iter().map(|it| it.join().unwrap()).collect();
        drop(tell);
        outcomes
    })
}

/// Where the link to the source is cut without a sound, a write of the word goes well all the same,
/// and the source goes on with its guest.
#[test]
fn a_word_that_the_source_never_got_is_no_success_at_any_relay() {
    thread::scope(|scope| {
        for legs in [
            &["tcp:127.0.0.1:0"][..],
            &["tcp:127.0.0.1:0", "trunk+tcp:127.0.0.1:0"],
        ] {
            scope.spawn(move || {
                for outcome in deaf(legs) {
                    let failure = outcome.expect_err("the source has not heard it");
                    let is_it = matches!(failure.cause, Cause::NotTold);
                    assert!(is_it, "{legs:?}: {}", failure.explain());
                }
            });
        }
    });
}
