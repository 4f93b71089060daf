//! A source that is cut and has gone, and the next one at the same address.

use std::thread;
use std::time::Duration;

use multifd_wire::Method;

use super::super::support::made::{Channel, Shape, short};
use super::super::support::peers::{Destination, Role, SHUT_WELL, Source, dial, write};
use super::super::{parse, relay_at};

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
