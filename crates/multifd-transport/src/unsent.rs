//! The bytes that wait in a socket to be sent.
#![allow(unsafe_code, reason = "rustix has the request but no call for it")]

use std::ffi::c_int;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// `SIOCOUTQ` of linux/sockios.h, which is `TIOCOUTQ` of asm-generic/ioctls.h.
const SIOCOUTQ: Opcode = 0x5411;

/// `SIOCOUTQNSD` of linux/sockios.h, for TCP.
const SIOCOUTQNSD: Opcode = 0x894B;

/// Bytes that were written to `socket` and that it has not begun to pass on: over TCP those that
/// wait for the link or for the peer's window, over a unix socket those that the peer has not read.
pub(crate) fn waiting_bytes(socket: impl AsFd) -> io::Result<u64> {
    let socket = socket.as_fd();
    // SAFETY: the request fills one `int` and reads nothing (linux/sockios.h).
    let getter = unsafe { Getter::<SIOCOUTQNSD, c_int>::new() };
    // SAFETY: as above; the descriptor is open, as it is borrowed.
    match unsafe { ioctl(socket, getter) } {
        Ok(bytes) => Ok(u64::try_from(bytes).unwrap_or(0)),
        Err(_) => unsent_bytes(socket),
    }
}

/// Bytes that were written to `socket` and are still in this host: over TCP those that the peer's
/// host has not acknowledged, over a unix socket those that the peer has not read.
pub(crate) fn unsent_bytes(socket: impl AsFd) -> io::Result<u64> {
    // SAFETY: the request fills one `int` and reads nothing (unix(7), tcp(7)).
    let getter = unsafe { Getter::<SIOCOUTQ, c_int>::new() };
    // SAFETY: as above; the descriptor is open, as it is borrowed.
    let bytes = unsafe { ioctl(socket, getter)? };
    Ok(u64::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn over_tcp_only_what_waits_is_waiting() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        (&ours).write_all(&[1; 100]).unwrap();
        assert_eq!(waiting_bytes(&ours).unwrap(), 0);
        // More than the buffers of a peer that reads nothing.
        ours.set_nonblocking(true).unwrap();
        while (&ours).write(&[1; 1 << 20]).is_ok() {}
        assert!(waiting_bytes(&ours).unwrap() > 0);
    }

    #[test]
    fn what_the_peer_has_not_read_is_counted() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(unsent_bytes(&ours).unwrap(), 0);
        ours.write_all(&[1; 100]).unwrap();
        assert!(unsent_bytes(&ours).unwrap() > 0);
        assert!(waiting_bytes(&ours).unwrap() > 0);
        theirs.read_exact(&mut [0; 100]).unwrap();
        assert_eq!(unsent_bytes(&ours).unwrap(), 0);
    }
}
