//! QEMU multifd migration: the bytes on the wire, without IO.
