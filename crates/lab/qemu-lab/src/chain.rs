//! One guest that moves from QEMU to QEMU, never restarted.

use std::time::{Duration, Instant};

use crate::binary::QemuBinary;
use crate::guest::Guest;
use crate::memory::compare_ram;
use crate::migration::{MigrationStatus, Parameters};
use crate::qemu::{Config, LabError, Qemu, io_error};
use multifd_bench::links::LinkEnd;

/// How long one step of a hop may take. A hop takes a fraction of a second; machines that run tests
/// are loaded.
const LIMIT: Duration = Duration::from_secs(60);

/// Passes that a guest must make between two hops: then it has used every page since it arrived.
const PASSES: u32 = 2;

/// A guest in a chain of migrations, each to a new process.
///
/// After each hop the memory at both ends must be the same in every byte, what the guest holds must
/// be what it has made of it, and the guest must go on where it was. So what one hop damages is
/// found there.
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
    /// The QEMU to go to.
    pub destination: &'a QemuBinary,
    /// The source's settings.
    pub source_parameters: Parameters,
    /// The destination's settings; only a relay can make different methods meet.
    pub destination_parameters: Parameters,
    /// Connect by `tcp` on the loopback instead of a unix socket.
    pub tcp: bool,
    /// The destination is at this end of a link, and connections go over it.
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

/// What a hop was like.
#[derive(Debug, Clone, PartialEq)]
pub struct HopReport {
    /// The source's figures.
    pub source: MigrationStatus,
    /// The destination's.
    pub destination: MigrationStatus,
    /// The pass in which the guest arrived.
    pub pass: u32,
    /// Processor time of the source and the destination from the moment that the destination
    /// listened, without the guest's own.
    pub cpu: [Duration; 2],
    /// The whole hop, from the start of the destination's process to the guest running there,
    /// memory checked.
    pub took: Duration,
}

impl Chain {
    /// Starts a guest. The machine type is the chain's for good, and every QEMU on the way must
    /// know it.
    pub fn start(binary: &QemuBinary, guest: &Guest, machine: &str) -> Result<Chain, LabError> {
        Chain::start_with(Config::new(binary, guest), guest, machine)
    }

    /// As [`Chain::start`], at an end of a link.
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

    /// The QEMU in which the guest is now.
    pub fn current(&mut self) -> &mut Qemu {
        &mut self.current
    }

    /// Moves the guest without anything in between.
    pub fn hop(&mut self, hop: &Hop<'_>) -> Result<HopReport, LabError> {
        self.hop_via(hop, str::to_owned)
    }

    /// Moves the guest, running or stopped as it is. `via` is told where the destination listens,
    /// and says where the source shall connect to: a relay stands in between.
    ///
    /// After an error of the migration itself the chain is as before, and the guest in the state
    /// the source left it in.
    pub fn hop_via(
        &mut self,
        hop: &Hop<'_>,
        via: impl FnOnce(&str) -> String,
    ) -> Result<HopReport, LabError> {
        self.try_hop_via(hop, |listening| Ok(via(listening)))
    }

    /// As [`Chain::hop_via`], where what stands in between may not start.
    ///
    /// # Errors
    /// What `via` has said, in front of the migration; or as [`Chain::hop_via`].
    pub fn try_hop_via<E: From<LabError>>(
        &mut self,
        hop: &Hop<'_>,
        via: impl FnOnce(&str) -> Result<String, E>,
    ) -> Result<HopReport, E> {
        let begun = Instant::now();
        // While this process starts, the guest has time for the passes it owes.
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
