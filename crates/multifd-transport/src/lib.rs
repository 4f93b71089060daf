//! QEMU multifd migration: inlets, outlets, the relay, the receiver, recordings.
