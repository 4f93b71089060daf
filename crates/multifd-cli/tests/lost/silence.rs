//! A source that stops between its set-up and its first round, and closes nothing.

use std::thread;

use multifd_wire::Method;

use super::super::support::made::{Channel, Shape};
use super::super::support::peers::{PONG, Source, write};
use super::super::{TAKERS, Taking};

/// A QEMU 11.1 that is cancelled there stands still with its guest until main is closed.
#[test]
fn a_source_that_stops_behind_its_setup_is_let_go() {
    thread::scope(|scope| {
        for taker in TAKERS {
            scope.spawn(move || {
                let shape = Shape {
                    return_path: true,
                    ..Shape::default()
                };
                let mut taking = Taking::start(taker);
                let source = Source::dial(&taking.address, 2);
                for (stream, id) in source.channels.iter().zip(0..) {
                    write(stream, &Channel::new(id, Method::None).sync().bytes());
                }
                write(&source.main, &shape.set_up());
                assert!(source.hears(&PONG).ends_with(&PONG), "it loads");
                source.wait_for_end();
                drop(source);
                if let Some(destination) = taking.destination.take() {
                    drop(destination.wait("the end", |seen| seen.main().end.is_some()));
                    destination.close_all();
                }
                taking.fails(&["source side", "nothing after its set-up"]);
            });
        }
    });
}
