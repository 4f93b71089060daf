//! Migrations between a source engine and a destination engine: real sockets, guests made of threads.

mod equal;
mod support;
mod tracking;
