//! Captures: every byte of a migration between two real QEMUs, with how it came about.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::binary::QemuBinary;
use crate::guest::Guest;
use crate::migration::Parameters;
use crate::qemu::{Config, LabError, Qemu, io_error};
use crate::tee::{Connection, Tee};

/// No step takes nearly as long.
const LIMIT: Duration = Duration::from_secs(60);

/// Rounds that a running guest's migration goes through before it may end.
const LIVE_ROUNDS: u64 = 6;

/// So narrow that what a restless guest writes is never sent in the blink of an eye, and the rounds
/// remain small.
const LIVE_BANDWIDTH: u64 = 400_000;

/// The bandwidth to begin with: a source that has sent everything before it has measured for the
/// first time ends without another round.
const FIRST_BANDWIDTH: u64 = 10_000;

/// A source measures its bandwidth in steps of 100 ms.
const MEASURED_AFTER: Duration = Duration::from_millis(300);

/// What is to be captured.
#[derive(Debug, Clone)]
pub struct CaptureConfig {
    /// Both ends.
    pub binary: QemuBinary,
    /// The machine type.
    pub machine: String,
    /// The guest.
    pub guest: Guest,
    /// The machine's UUID.
    pub uuid: Option<String>,
    /// Settings of both ends.
    pub parameters: Parameters,
    /// Whether the guest runs, and keeps the migration going for several rounds.
    pub live: bool,
}

/// A captured migration.
#[derive(Debug)]
pub struct Capture {
    /// The connections under their customary names: `main`, `mfd0`, `mfd1`, ...
    pub connections: Vec<(String, Connection)>,
    /// Command lines, settings, `query-migrate` of both ends, the order in which the connections
    /// came.
    pub meta: Value,
    /// The memory that was sent, as it was in the end.
    pub ram: Vec<u8>,
}

impl CaptureConfig {
    /// Migrates a guest and keeps what goes over the wire.
    pub fn capture(&self) -> Result<Capture, LabError> {
        let mut config = Config::new(&self.binary, &self.guest).machine(&self.machine);
        if let Some(uuid) = &self.uuid {
            config = config.uuid(uuid);
        }
        let incoming = config.clone().incoming().paused();
        let (mut source, mut destination) = (config.start()?, incoming.start()?);
        source.wait_for_pass(3, LIMIT)?;
        if !self.live {
            source.stop()?;
        }
        let mut parameters = self.parameters.clone();
        if self.live {
            parameters.max_bandwidth = Some(FIRST_BANDWIDTH);
            parameters.downtime_limit = Some(Duration::from_millis(1));
        }
        source.set_migration(&parameters)?;
        destination.set_migration(&self.parameters)?;

        let (near, far) = (
            source.socket_path("tee"),
            destination.socket_path("incoming"),
        );
        destination.listen(&format!("unix:{}", far.display()))?;
        let connections = 1 + usize::from(self.parameters.channels.unwrap_or(0));
        let tee = Tee::start(&near, &far, connections).map_err(io_error("listening"))?;
        source.migrate(&format!("unix:{}", near.display()))?;
        if self.live {
            thread::sleep(MEASURED_AFTER);
            source.set_parameter("max-bandwidth", LIVE_BANDWIDTH)?;
            wait_for_rounds(&mut source)?;
            source.set_parameter("downtime-limit", LIMIT.as_millis() as u64)?;
        }
        for (name, end) in [("source", &mut source), ("destination", &mut destination)] {
            let status = end.wait_migration(LIMIT)?;
            if !status.is_completed() {
                let said = end.stderr();
                return Err(LabError::Migration {
                    end: name,
                    status: Box::new(status),
                    said,
                });
            }
        }
        source.check_guest()?;
        destination.check_guest()?;
        let mut ram = vec![0; source.ram().len_bytes() as usize];
        source
            .ram()
            .read_at(&mut ram, 0)
            .map_err(io_error("reading the guest's memory"))?;
        let told =
            [&mut source, &mut destination].map(|end| end.execute("query-migrate", json!({})));
        let [told_by_source, told_by_destination] = told;
        let (told_by_source, told_by_destination) = (told_by_source?, told_by_destination?);
        // Without a return path a destination keeps the main connection until it ends.
        drop(destination);
        drop(source);

        let connections = tee.finish().map_err(io_error("passing bytes on"))?;
        let connections: Vec<(String, Connection)> = connections
            .into_iter()
            .map(|connection| (name_of(&connection), connection))
            .collect();
        let order: Vec<&str> = connections.iter().map(|(name, _)| name.as_str()).collect();
        let meta = json!({
            "qemu": self.binary.to_string(),
            "source_command": config.command_line(),
            "destination_command": incoming.command_line(),
            "guest": format!("{:?}", self.guest),
            "live": self.live,
            "migrate_set_capabilities": parameters.capabilities(),
            "migrate_set_parameters": parameters.parameters(),
            "query_migrate_source": told_by_source,
            "query_migrate_destination": told_by_destination,
            "connections": order,
        });
        Ok(Capture {
            connections,
            meta,
            ram,
        })
    }
}

/// Waits until the source has collected dirty pages often enough. A guest that gets no processor
/// time at the wrong moment has none, and the migration ends before that.
fn wait_for_rounds(source: &mut Qemu) -> Result<(), LabError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = source.migration()?;
        if status.ram.dirty_sync_count >= LIVE_ROUNDS {
            return Ok(());
        }
        if status.is_final() || Instant::now() > deadline {
            let seen = format!("{status:?}");
            return Err(LabError::Late {
                what: "another round of the migration",
                limit: LIMIT,
                seen,
            });
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The main connection begins with "QEVM"; a channel's number is in its first message.
fn name_of(connection: &Connection) -> String {
    match connection.forward.get(24) {
        Some(channel) if !connection.forward.starts_with(b"QEVM") => format!("mfd{channel}"),
        _ => "main".to_owned(),
    }
}
