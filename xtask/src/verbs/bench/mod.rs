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
    /// Pages that are sent again: bytes as differences beside zstd-1, and speed
    #[command(disable_help_flag = true)]
    Delta(delta::Arguments),
    /// Guests without a QEMU, in every mode: the published table for this machine
    #[command(disable_help_flag = true)]
    Migrate(migrate::Arguments),
    /// How many instructions the deflate codec takes for a page, counted by valgrind; fails if they
    /// are 2 % more than the committed ones, or if the codec stores from a high byte of a register
    Instructions(instructions::Arguments),
    /// What `multifd-bench plan` predicts, beside migrations between real QEMUs over four links
    Plan(plan::Arguments),
    /// A busy guest between real QEMUs, their own methods beside relays with zlib, also over a link
    /// of a chosen rate
    Qemu(qemu::Arguments),
    /// Migrations through two relays beside migrations without, and the relays' memory
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
