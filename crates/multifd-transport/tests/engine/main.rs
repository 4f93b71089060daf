//! Migrations between a source engine and a destination engine: real sockets, guests made of threads.

mod equal;
mod measure;
mod support;
mod tracking;
