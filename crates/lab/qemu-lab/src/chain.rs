//! One guest that moves from QEMU to QEMU without a restart.

use std::time::{Duration, Instant};

use crate::binary::QemuBinary;
use crate::guest::Guest;
use crate::memory::compare_ram;
use crate::migration::Parameters;
use crate::qemu::{Config, LabError, Qemu, io_error};
use multifd_bench::links::LinkEnd;
use multifd_operate::qemu::MigrationStatus;

/// The time limit for one step of a hop. A hop takes a fraction of a second, but test machines are
/// loaded.
const LIMIT: Duration = Duration::from_secs(60);

/// Passes that a guest must make between two hops, so that it has used every page since it arrived.
const PASSES: u32 = 2;

/// A guest in a chain of migrations, each to a new process.
///
/// After each hop the memory at both ends must be identical, the guest's content must be correct,
/// and the guest must continue. So damage is found at the hop that causes it.
#[derive(Debug)]
pub struct Chain {
    guest: Guest,
    machine: String,
    current: Qemu,
    arrived_in: u32,
}

/// One migration of a chain.
#[derive(Debug, Clone)]
pub struct Hop<'a> {
    /// The destination QEMU.
    pub destination: &'a QemuBinary,
    /// The source's settings.
    pub source_parameters: Parameters,
    /// The destination's settings; different methods require a relay.
    pub destination_parameters: Parameters,
    /// Connect by `tcp` on the loopback instead of a unix socket.
    pub tcp: bool,
    /// Places the destination at this end of a link, and connects over it.
    pub over: Option<&'a LinkEnd>,
}

impl<'a> Hop<'a> {
    /// A migration with the same settings at both ends, over a unix socket.
    #[must_use]
    pub fn to(destination: &'a QemuBinary, parameters: &Parameters) -> Self {
        Hop {
            destination,
            source_parameters: parameters.clone(),
            destination_parameters: parameters.clone(),
            tcp: false,
            over: None,
        }
    }
}

/// Measurements of one hop.
#[derive(Debug, Clone, PartialEq)]
pub struct HopReport {
    /// The source's figures.
    pub source: MigrationStatus,
    /// The destination's figures.
    pub destination: MigrationStatus,
    /// The pass in which the guest arrived.
    pub pass: u32,
    /// Processor time of the source and the destination since the destination listened, without the
    /// guest's own.
    pub cpu: [Duration; 2],
    /// The duration of the whole hop, from the start of the destination's process to the guest
    /// running there, memory checked.
    pub took: Duration,
}

impl Chain {
    /// Starts a guest. The machine type stays the same for the whole chain, and every QEMU on the
    /// way must support it.
    pub fn start(binary: &QemuBinary, guest: &Guest, machine: &str) -> Result<Chain, LabError> {
        Chain::start_with(Config::new(binary, guest), guest, machine)
    }

    /// The same as [`Chain::start`], at an end of a link.
    pub fn start_at(
        end: &LinkEnd,
        binary: &QemuBinary,
        guest: &Guest,
        machine: &str,
    ) -> Result<Chain, LabError> {
        Chain::start_with(Config::new(binary, guest).at(end), guest, machine)
    }

    fn start_with(config: Config, guest: &Guest, machine: &str) -> Result<Chain, LabError> {
        let current = config.machine(machine).start()?;
        Ok(Chain {
            guest: guest.clone(),
            machine: machine.to_owned(),
            current,
            arrived_in: 0,
        })
    }

    /// The guest's current QEMU.
    pub fn current(&mut self) -> &mut Qemu {
        &mut self.current
    }

    /// Moves the guest directly.
    pub fn hop(&mut self, hop: &Hop<'_>) -> Result<HopReport, LabError> {
        self.hop_via(hop, str::to_owned)
    }

    /// Moves the guest, running or stopped. `via` gets the destination's address, and returns the
    /// address for the source to connect to: that of a relay.
    ///
    /// After an error of the migration itself, the chain is unchanged, and the guest is in the
    /// state in which the source left it.
    pub fn hop_via(
        &mut self,
        hop: &Hop<'_>,
        via: impl FnOnce(&str) -> String,
    ) -> Result<HopReport, LabError> {
        self.try_hop_via(hop, |listening| Ok(via(listening)))
    }

    /// The same as [`Chain::hop_via`], for a `via` that can fail.
    ///
    /// # Errors
    /// The error of `via`, before the migration; or those of [`Chain::hop_via`].
    pub fn try_hop_via<E: From<LabError>>(
        &mut self,
        hop: &Hop<'_>,
        via: impl FnOnce(&str) -> Result<String, E>,
    ) -> Result<HopReport, E> {
        let begun = Instant::now();
        // While this process starts, the guest has time for the required passes.
        let mut config = Config::new(hop.destination, &self.guest)
            .machine(&self.machine)
            .incoming()
            .paused();
        if let Some(end) = hop.over {
            config = config.at(end);
        }
        let mut destination = config.start()?;
        let source = &mut self.current;
        let running = source.run_state()? == "running";
        if running {
            source.wait_for_pass(self.arrived_in + PASSES, LIMIT)?;
        }

        source.set_migration(&hop.source_parameters)?;
        destination.set_migration(&hop.destination_parameters)?;
        let uri = match hop.over {
            Some(end) => format!("tcp:{}:0", end.address()),
            None if hop.tcp => "tcp:127.0.0.1:0".to_owned(),
            None => format!("unix:{}", destination.socket_path("incoming").display()),
        };
        let listening = destination.listen(&uri)?;
        let cpu_before = [source.cpu_time()?, destination.cpu_time()?];
        source.migrate(&via(&listening)?)?;
        let sent = source.wait_migration(LIMIT)?;
        if !sent.is_completed() {
            return Err(failed("source", sent, source, &destination).into());
        }
        let received = destination.wait_migration(LIMIT)?;
        if !received.is_completed() {
            return Err(failed("destination", received, source, &destination).into());
        }

        let cpu_after = [source.cpu_time()?, destination.cpu_time()?];
        let cpu = [0, 1].map(|end| cpu_after[end].saturating_sub(cpu_before[end]));
        let different =
            compare_ram(source.ram(), destination.ram()).map_err(io_error("comparing memories"))?;
        if let Some(&first) = different.first() {
            return Err(E::from(LabError::Differs {
                count: different.len(),
                first,
            }));
        }
        source.check_guest()?;
        let pass = destination.check_guest()?;
        if running {
            destination.resume()?;
        }
        self.current = destination;
        self.arrived_in = pass;
        Ok(HopReport {
            source: sent,
            destination: received,
            pass,
            cpu,
            took: begun.elapsed(),
        })
    }
}

fn failed(
    end: &'static str,
    status: MigrationStatus,
    source: &Qemu,
    destination: &Qemu,
) -> LabError {
    let said = format!(
        "source: {}; destination: {}",
        source.stderr(),
        destination.stderr()
    );
    LabError::Migration {
        end,
        status: Box::new(status),
        said,
    }
}
