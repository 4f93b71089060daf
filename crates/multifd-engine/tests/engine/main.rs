//! Migrations between a source engine and a destination engine: real sockets, guests made of
//! threads.

mod changes;
mod differences;
mod equal;
mod regions;
mod tracking;
