//! `cargo xtask bench`: measurements, each with what it is compared with in the same run.

mod relay;

use clap::Subcommand;

use crate::Result;

#[derive(Subcommand)]
pub enum Bench {
    /// Migrations through two relays beside migrations without, and the relays' memory
    Relay(relay::Arguments),
}

pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Relay(arguments) => relay::run(arguments),
    }
}
