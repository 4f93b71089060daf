//! Migrations between a source engine and a destination engine: real sockets, guests made of threads.

mod changes;
mod equal;
mod measure;
mod regions;
mod support;
mod tracking;
