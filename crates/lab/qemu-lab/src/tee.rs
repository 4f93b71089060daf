//! What goes over the wire between two QEMUs, both ways, connection by connection.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

/// Passes connections on and keeps what they carry.
///
/// Without limits on what it keeps, and without an end when a QEMU stays away: for making captures,
/// not for tests.
#[derive(Debug)]
pub struct Tee {
    acceptor: JoinHandle<io::Result<Vec<Pumps>>>,
}

/// What one connection carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// From the one who connected.
    pub forward: Vec<u8>,
    /// To the one who connected.
    pub back: Vec<u8>,
}

#[derive(Debug)]
struct Pumps {
    forward: JoinHandle<io::Result<Vec<u8>>>,
    back: JoinHandle<io::Result<Vec<u8>>>,
}

impl Tee {
    /// Listens at `listen` and passes `connections` connections on to `target`, in the order in
    /// which they come.
    pub fn start(listen: &Path, target: &Path, connections: usize) -> io::Result<Tee> {
        let listener = UnixListener::bind(listen)?;
        let target = target.to_owned();
        let acceptor = thread::spawn(move || {
            (0..connections)
                .map(|_| Pumps::start(listener.accept()?.0, UnixStream::connect(&target)?))
                .collect()
        });
        Ok(Tee { acceptor })
    }

    /// Waits until both sides have closed every connection. Gives the connections in the order in
    /// which they came.
    pub fn finish(self) -> io::Result<Vec<Connection>> {
        let pumps = joined(self.acceptor)?;
        pumps
            .into_iter()
            .map(|pumps| {
                Ok(Connection {
                    forward: joined(pumps.forward)?,
                    back: joined(pumps.back)?,
                })
            })
            .collect()
    }
}

impl Pumps {
    fn start(near: UnixStream, far: UnixStream) -> io::Result<Pumps> {
        let (near_again, far_again) = (near.try_clone()?, far.try_clone()?);
        Ok(Pumps {
            forward: thread::spawn(move || pump(near, far)),
            back: thread::spawn(move || pump(far_again, near_again)),
        })
    }
}

/// Moves bytes until `from` ends, and gives all of them.
fn pump(mut from: UnixStream, mut to: UnixStream) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut piece = vec![0; 0x1_0000];
    let mut open = true;
    loop {
        let len = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error),
        };
        kept.extend_from_slice(&piece[..len]);
        // A destination that is complete closes channels while a 7.2 source still has an empty
        // packet to send.
        open = open && to.write_all(&piece[..len]).is_ok();
    }
    // The other side may have closed first.
    let _ = to.shutdown(Shutdown::Write);
    Ok(kept)
}

fn joined<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread
        .join()
        .map_err(|_| io::Error::other("a thread that passes bytes on has panicked"))?
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::Shutdown;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::{Connection, Tee};

    #[test]
    fn both_directions_are_passed_on_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (listen, target) = (folder.path().join("listen"), folder.path().join("target"));
        let listener = UnixListener::bind(&target).unwrap();
        let tee = Tee::start(&listen, &target, 1).unwrap();

        let mut near = UnixStream::connect(&listen).unwrap();
        let mut far = listener.accept().unwrap().0;
        near.write_all(b"forward").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "forward");
        far.write_all(b"back").unwrap();
        drop(far);
        let mut text = String::new();
        near.read_to_string(&mut text).unwrap();
        assert_eq!(text, "back");

        let expected = Connection {
            forward: b"forward".to_vec(),
            back: b"back".to_vec(),
        };
        assert_eq!(tee.finish().unwrap(), [expected]);
    }
}
