//! A source that is cut and has gone, and the next one at the same address.

use std::thread;
use std::time::Duration;

use multifd_wire::Method;

use super::super::support::made::{Channel, Shape, short};
use super::super::support::peers::{Destination, Role, SHUT_WELL, Source, dial, write};
use super::super::{parse, relay_at};

/// VMs without a UUID name the same one. What was closed was closed by a source that does not wait
/// for a word any more.
#[test]
fn a_closed_channel_of_an_earlier_try_is_not_the_next_ones() {
    let migration = short(&Shape {
        return_path: true,
        ..Shape::default()
    });
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut relay = relay_at("tcp:127.0.0.1:0", &destination.address, &["--once"]);
    let address = relay.address();
    let stale = Channel::new(0, Method::None).sync();
    write(&dial(&address), &stale.pages(&[(0, 99)], &[]).bytes());
    let mut source = Source::dial(&address, 2);
    let late = source.channels.remove(0);
    write(&source.channels[0], &migration.channels[1]);
    write(&source.main, &migration.main);
    drop(destination.wait("the one that is here", |seen| {
        seen.of(Role::Channel(1)).is_some()
    }));
    // Longer than a closed channel waits for its main channel to be closed too.
    thread::sleep(Duration::from_millis(1500));
    write(&late, &migration.channels[0]);
    let seen = destination.wait("all of it", |seen| seen.has_all(&migration));
    let channel = seen.of(Role::Channel(0)).expect("a channel");
    assert!(channel.bytes == migration.channels[0]);
    drop(seen);
    destination.say(Role::Main, &SHUT_WELL);
    assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
    drop(late);
    source.finish();
    destination.close_all();
    let report = parse(&relay.end().well());
    assert_eq!(
        (&report["channels"], &report["confirmed"]),
        (&2.into(), &true.into())
    );
}

/// It was cut after its hellos, at its set-up's end, and the next one comes at once, or a little
/// later.
#[test]
fn a_source_that_has_gone_stops_no_other() {
    let shape = |uuid| Shape {
        return_path: true,
        uuid,
        ..Shape::default()
    };
    thread::scope(|scope| {
        for is_tcp in [false, true] {
            for return_path in [false, true] {
                for pause in [0, 50, 500] {
                    scope.spawn(move || {
                        let folder = tempfile::tempdir().expect("a folder");
                        let destination = Destination::new(folder.path(), 2);
                        let listen = match is_tcp {
                            true => "tcp:127.0.0.1:0".to_owned(),
                            false => format!("unix:{}", folder.path().join("s").display()),
                        };
                        let mut relay = relay_at(&listen, &destination.address, &[]);
                        let address = relay.address();
                        let main = dial(&address);
                        for id in 0..2 {
                            let hello = Channel::new(id, Method::None).bytes();
                            write(&dial(&address), &hello);
                        }
                        thread::sleep(Duration::from_millis(50));
                        let dead = Shape {
                            return_path,
                            ..Shape::default()
                        };
                        write(&main, &dead.set_up());
                        drop(main);
                        thread::sleep(Duration::from_millis(pause));
                        let migration = short(&shape(None));
                        let source = Source::begin(&address, &migration);
                        drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
                        destination.say(Role::Main, &SHUT_WELL);
                        assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
                        source.finish();
                        destination.close_all();
                        // Both may have been here at once.
                        let reports = [parse(&relay.result()), parse(&relay.result())];
                        let count = |confirmed: bool| {
                            let all = reports.iter();
                            all.filter(|it| it["confirmed"] == confirmed).count()
                        };
                        assert_eq!((count(true), count(false)), (1, 1), "{reports:?}");
                    });
                }
            }
        }
    });
}
