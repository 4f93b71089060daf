//! One file per verb.

pub mod bench;
pub mod build;
pub mod campaign;
pub mod capture;
pub mod check;
pub mod demo;
pub mod detect;
pub mod dist;
pub mod fuzz;
pub mod recording;
pub mod setup;
pub mod soak;
pub mod test;
