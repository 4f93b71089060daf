//! `cargo xtask bench`: measurements, each with its reference in the same run.

mod codec;
mod delta;
mod instructions;
mod migrate;
mod plan;
mod qemu;
mod relay;
mod stores;

use clap::Subcommand;

use crate::Result;

#[derive(Subcommand)]
pub enum Bench {
    /// Every codec this machine has, beside stock zlib and zstd, on pages of a real guest
    #[command(disable_help_flag = true)]
    Codec(codec::Arguments),
    /// Pages that are sent again: size and speed of differences, beside zstd at level 1
    #[command(disable_help_flag = true)]
    Delta(delta::Arguments),
    /// The published table for this machine: guests without a QEMU, in every mode
    #[command(disable_help_flag = true)]
    Migrate(migrate::Arguments),
    /// The deflate codec's instructions for a page, counted by valgrind; fails if they exceed the
    /// committed number by 2 %, or if the codec stores from a high byte of a register
    Instructions(instructions::Arguments),
    /// Predictions of `multifd-bench plan`, beside migrations between real QEMUs over four links
    Plan(plan::Arguments),
    /// A busy guest between real QEMUs: QEMU's own methods beside relays, also over a link of a
    /// chosen rate
    Qemu(qemu::Arguments),
    /// Migrations through two relays beside direct ones, and the relays' memory
    Relay(relay::Arguments),
}

pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Codec(arguments) => codec::run(arguments),
        Bench::Delta(arguments) => delta::run(arguments),
        Bench::Migrate(arguments) => migrate::run(arguments),
        Bench::Instructions(arguments) => instructions::run(arguments),
        Bench::Plan(arguments) => plan::run(arguments),
        Bench::Qemu(arguments) => qemu::run(arguments),
        Bench::Relay(arguments) => relay::run(arguments),
    }
}
