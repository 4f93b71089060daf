//! The destination's word, where a connection has broken before it.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use super::super::support::made::{Shape, short};
use super::super::support::peers::{Destination, Role, SHUT_WELL, Source, write};
use super::super::{Pair, report};

/// Everything has arrived, and one of the source's channels is reset. The destination may start its
/// guest at any moment, so its word is waited for and passed on.
#[test]
fn a_channel_that_breaks_late_does_not_stop_the_word() {
    for pause in [0, 50, 250, 400] {
        let migration = short(&Shape {
            return_path: true,
            ..Shape::default()
        });
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let pair = Pair::new(folder.path(), "tcp", &destination.address, &[]);
        let text = pair.address.to_string();
        let to = text.strip_prefix("tcp:").expect("tcp");
        let breaks = TcpStream::connect(to).expect("a listener");
        let mut source = Source::dial(&pair.address, 1);
        write(&source.main, &migration.main);
        write(&source.channels[0], &migration.channels[0]);
        let channel = multifd_transport::Stream::from(breaks.try_clone().expect("a socket"));
        write(&channel, &migration.channels[1]);
        drop(channel);
        drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
        let linger = Some(Duration::ZERO);
        set_socket_linger(&breaks, linger).expect("a socket");
        drop(breaks);
        thread::sleep(Duration::from_millis(pause));
        let main = destination.stream(Role::Main);
        write(&main, &SHUT_WELL);
        let heard = source.hears(&SHUT_WELL);
        assert!(heard.ends_with(&SHUT_WELL), "{pause} ms: {heard:?}");
        source.finish();
        source.channels.clear();
        drop(source);
        destination.close_all();
        let near = pair.near.end();
        assert_eq!(report(&near)["confirmed"], true, "{near:?}");
        let far = pair.far.end();
        assert_eq!(report(&far)["confirmed"], true, "{far:?}");
    }
}
