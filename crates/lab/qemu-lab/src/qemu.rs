//! A running QEMU.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Once, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary::QemuBinary;
use crate::guest::{Guest, MemoryFault};
use crate::memory::Ram;
use crate::migration::Parameters;
use multifd_bench::links::LinkEnd;
use multifd_operate::qemu::MigrationStatus;
use multifd_operate::qmp::{Qmp, QmpError};

/// The folder for guests' memory and sockets: short paths, and never on a disk.
const FOLDER: &str = "/dev/shm";

/// The prefix of the folders' names.
const PREFIX: &str = "qemu-lab-";

/// The socket of the monitor for a command under test.
const OPERATOR: &str = "operator";

/// The file in a folder that its owner locks.
const IN_USE: &str = "in-use";

/// The time limit for a QEMU to offer its control socket; loaded machines are slow.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The interval for polling state without events.
const POLL: Duration = Duration::from_millis(3);

/// The interval for polling a migration whose end QEMU normally reports as an event, in case it
/// does not.
const LOOK: Duration = Duration::from_millis(200);

/// Errors of a QEMU under test.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The process could not be started, or its files could not be read.
    #[error("{what}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The process has ended.
    #[error("QEMU ended with {status}, and said: {said}")]
    Ended {
        /// Its exit status.
        status: ExitStatus,
        /// Its standard error.
        said: String,
    },
    /// A QMP command failed.
    #[error("QEMU said: {said}")]
    Qmp {
        /// Its standard error so far.
        said: String,
        /// The failure.
        source: QmpError,
    },
    /// The time limit expired.
    #[error("{what} has not come for {limit:?}; last seen: {seen}")]
    Late {
        /// The expected event.
        what: &'static str,
        /// The limit.
        limit: Duration,
        /// The state instead.
        seen: String,
    },
    /// The migration did not complete.
    #[error("the migration {} at the {end}: {} ({said})", .status.status, .status.error_desc.as_deref().unwrap_or("no reason given"))]
    Migration {
        /// The reporting end.
        end: &'static str,
        /// Its report.
        status: Box<MigrationStatus>,
        /// The output of both processes.
        said: String,
    },
    /// Memory differs between source and destination.
    #[error("after the migration {count} pages differ, first page {first}")]
    Differs {
        /// Number of differing pages.
        count: usize,
        /// The first of them.
        first: u64,
    },
    /// The guest's memory is damaged.
    #[error(transparent)]
    Memory(#[from] MemoryFault),
    /// The guest itself has found a wrong page, or was restarted.
    #[error("the guest printed {0:?}")]
    Guest(String),
    /// The guest must be stopped while its memory is read.
    #[error("only a stopped guest's memory can be checked, and this guest is running")]
    Running,
}

pub(crate) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> LabError {
    move |source| LabError::Io { what, source }
}

/// The configuration of a QEMU.
#[derive(Debug, Clone)]
pub struct Config {
    binary: QemuBinary,
    guest: Guest,
    machine: String,
    incoming: bool,
    paused: bool,
    uuid: Option<String>,
    link_end: Option<LinkEnd>,
}

impl Config {
    /// A QEMU that runs `guest` on a `q35` machine.
    #[must_use]
    pub fn new(binary: &QemuBinary, guest: &Guest) -> Config {
        Config {
            binary: binary.clone(),
            guest: guest.clone(),
            machine: "q35".to_owned(),
            incoming: false,
            paused: false,
            uuid: None,
            link_end: None,
        }
    }

    /// The machine type. Both ends of a migration need the same; `q35` is each release's newest.
    #[must_use]
    pub fn machine(mut self, machine: &str) -> Config {
        machine.clone_into(&mut self.machine);
        self
    }

    /// Waits for a guest to arrive (`-incoming defer`) instead of starting one.
    #[must_use]
    pub fn incoming(mut self) -> Config {
        self.incoming = true;
        self
    }

    /// Keeps the guest stopped until [`Qemu::resume`] (`-S`).
    #[must_use]
    pub fn paused(mut self) -> Config {
        self.paused = true;
        self
    }

    /// The machine's UUID, in text form.
    #[must_use]
    pub fn uuid(mut self, uuid: &str) -> Config {
        self.uuid = Some(uuid.to_owned());
        self
    }

    /// Runs the QEMU at this end of a link.
    #[must_use]
    pub fn at(mut self, end: &LinkEnd) -> Config {
        self.link_end = Some(end.clone());
        self
    }

    /// Starts the QEMU.
    pub fn start(&self) -> Result<Qemu, LabError> {
        let folder = new_folder().map_err(io_error("making a folder for a QEMU"))?;
        let process = self
            .prepare(folder.dir.path())
            .map_err(io_error("preparing a guest"))?;
        let child = spawn(process).map_err(io_error("starting QEMU"))?;
        let mut starting = Process { child, folder };
        let qmp = starting.connect()?;
        let ram =
            Ram::open(&starting.path("ram")).map_err(io_error("opening the guest's memory"))?;
        Ok(Qemu {
            process: starting,
            qmp,
            ram,
            guest: self.guest.clone(),
            binary: self.binary.clone(),
            incoming: self.incoming,
        })
    }

    /// Creates the files and the command line.
    fn prepare(&self, folder: &Path) -> io::Result<Command> {
        let file = |name: &str| folder.join(name).display().to_string();
        let ram = File::create(file("ram"))?;
        ram.set_len(self.guest.ram_bytes())?;
        if !self.incoming {
            self.guest.fill(&ram)?;
        }
        fs::write(file("firmware"), self.guest.firmware())?;

        let mut command = self.binary.command();
        if let Some(end) = &self.link_end {
            command = end.command(&command);
        }
        let mut command = tied_to_parent(&command);
        command.args(self.arguments(folder));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(file("stderr"))?);
        Ok(command)
    }

    /// The command line for a shell in a folder with the guest's files.
    #[must_use]
    pub fn command_line(&self) -> String {
        format!(
            "qemu-system-x86_64 {}",
            self.arguments(Path::new("")).join(" ")
        )
    }

    fn arguments(&self, folder: &Path) -> Vec<String> {
        let file = |name: &str| folder.join(name).display().to_string();
        let (machine, mib) = (&self.machine, self.guest.ram_mib);
        let mut arguments: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none"]
            .map(str::to_owned)
            .into();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        // Without ACPI the guest's memory has no tables besides our own program.
        add(
            "-machine",
            format!("{machine},acpi=off,memory-backend=pc.ram"),
        );
        add("-accel", "tcg,tb-size=16".to_owned());
        add("-m", format!("{mib}M"));
        let backend = format!(
            "memory-backend-file,id=pc.ram,size={mib}M,share=on,mem-path={}",
            file("ram")
        );
        add("-object", backend);
        add("-bios", file("firmware"));
        add("-serial", format!("file:{}", file("serial")));
        // A monitor serves one client at a time. The second one is for the command under test.
        for monitor in ["qmp", OPERATOR] {
            add("-qmp", format!("unix:{},server=on,wait=off", file(monitor)));
        }
        if let Some(uuid) = &self.uuid {
            add("-uuid", uuid.clone());
        }
        if self.incoming {
            add("-incoming", "defer".to_owned());
        }
        if self.paused {
            arguments.push("-S".to_owned());
        }
        arguments
    }
}

/// A QEMU process with its guest. Dropping it kills the process and removes its files.
#[derive(Debug)]
pub struct Qemu {
    process: Process,
    qmp: Qmp,
    ram: Ram,
    guest: Guest,
    binary: QemuBinary,
    incoming: bool,
}

impl Qemu {
    /// The running program.
    #[must_use]
    pub fn binary(&self) -> &QemuBinary {
        &self.binary
    }

    /// The guest's current memory.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// The file behind the guest's memory.
    #[must_use]
    pub fn ram_path(&self) -> PathBuf {
        self.process.path("ram")
    }

    /// The guest's output in this process.
    pub fn serial(&self) -> Result<String, LabError> {
        let text =
            fs::read(self.process.path("serial")).map_err(io_error("reading the serial port"))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// QEMU's standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// The process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.child.id()
    }

    /// A path for a socket of this QEMU, removed together with it.
    #[must_use]
    pub fn socket_path(&self, name: &str) -> PathBuf {
        self.process.path(name)
    }

    /// The path of a monitor that this process does not use.
    #[must_use]
    pub fn operator_socket(&self) -> PathBuf {
        self.process.path(OPERATOR)
    }

    /// Runs a QMP command.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, LabError> {
        let answer = self.qmp.execute(command, arguments);
        answer.map_err(|source| self.process.broken(source))
    }

    /// Processor time of the process so far, without the guest's own.
    pub fn cpu_time(&mut self) -> Result<Duration, LabError> {
        let cpus = self.execute("query-cpus-fast", json!({}))?;
        let guest = cpus.as_array().into_iter().flatten();
        let threads = guest.filter_map(|cpu| cpu["thread-id"].as_u64());
        let id = self.id();
        let mut ticks = ticks(&format!("/proc/{id}/stat"))?;
        for thread in threads {
            ticks = ticks.saturating_sub(self::ticks(&format!("/proc/{id}/task/{thread}/stat"))?);
        }
        Ok(Duration::from_millis(ticks * TICK_MS))
    }

    /// Stops the guest.
    pub fn stop(&mut self) -> Result<(), LabError> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Resumes the guest.
    pub fn resume(&mut self) -> Result<(), LabError> {
        self.execute("cont", json!({})).map(drop)
    }

    /// The state of the machine as QEMU names it: `running`, `paused`, `inmigrate`, `postmigrate`,
    /// ...
    pub fn run_state(&mut self) -> Result<String, LabError> {
        let answer = self.execute("query-status", json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// The number of the guest's completed passes; it may be running.
    pub fn pass(&self) -> Result<u32, LabError> {
        self.guest
            .pass(&self.ram)
            .map_err(io_error("reading the guest's memory"))
    }

    /// Waits until the guest has completed pass number `pass`.
    pub fn wait_for_pass(&mut self, pass: u32, limit: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.pass()?;
            if seen >= pass {
                return Ok(());
            }
            if Instant::now() > deadline {
                let seen = format!("pass {seen}, serial port {:?}", self.serial()?);
                return Err(LabError::Late {
                    what: "a pass of the guest",
                    limit,
                    seen,
                });
            }
            thread::sleep(POLL);
        }
    }

    /// Checks a stopped guest's memory, and that the guest itself has found no error.
    pub fn check_guest(&mut self) -> Result<u32, LabError> {
        if self.run_state()? == "running" {
            return Err(LabError::Running);
        }
        let printed = self.serial()?;
        // A guest that arrived by migration started elsewhere.
        let starts = usize::from(!self.incoming);
        if printed.contains('E') || printed.matches('S').count() > starts {
            return Err(LabError::Guest(printed));
        }
        Ok(self.guest.check_memory(&self.ram)?.pass)
    }

    /// Waits until the guest runs, after a migration failed at any moment, and has made some
    /// further passes; then checks it like [`Qemu::check_guest`] and resumes it.
    pub fn check_goes_on(&mut self, limit: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.run_state()?;
            if seen == "running" {
                break;
            }
            if Instant::now() > deadline {
                return Err(LabError::Late {
                    what: "the guest's going on",
                    limit,
                    seen,
                });
            }
            thread::sleep(POLL);
        }
        let pass = self.pass()?;
        // The current pass may have begun before; the next one finds any damage in it.
        self.wait_for_pass(pass + 3, limit)?;
        self.stop()?;
        self.check_guest()?;
        self.resume()
    }

    /// Sets capabilities and parameters of this end, before [`Qemu::listen`] or [`Qemu::migrate`].
    pub fn set_migration(&mut self, parameters: &Parameters) -> Result<(), LabError> {
        self.execute("migrate-set-capabilities", parameters.capabilities())?;
        self.execute("migrate-set-parameters", parameters.parameters())
            .map(drop)
    }

    /// Sets one of QEMU's migration parameters, even during a migration.
    pub fn set_parameter(&mut self, name: &str, value: u64) -> Result<(), LabError> {
        self.execute("migrate-set-parameters", json!({ name: value }))
            .map(drop)
    }

    /// Listens for a guest at `unix:PATH` or `tcp:HOST:PORT`. Returns the actual address: port 0 is
    /// any free one.
    pub fn listen(&mut self, uri: &str) -> Result<String, LabError> {
        let mut arguments = json!({ "uri": uri });
        if self.binary.release() >= (9, 1) {
            // Older ones exit when a migration fails.
            arguments["exit-on-error"] = false.into();
        }
        self.execute("migrate-incoming", arguments)?;
        if !uri.starts_with("tcp:") {
            return Ok(uri.to_owned());
        }
        let status = self.execute("query-migrate", json!({}))?;
        let address = &status["socket-address"][0];
        match (address["host"].as_str(), address["port"].as_str()) {
            (Some(host), Some(port)) => Ok(format!("tcp:{host}:{port}")),
            _ => Ok(uri.to_owned()),
        }
    }

    /// Starts to send the guest to an address.
    pub fn migrate(&mut self, uri: &str) -> Result<(), LabError> {
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Switches the guest to the destination now; its pages follow. Needs `postcopy-ram` at both
    /// ends.
    pub fn start_postcopy(&mut self) -> Result<(), LabError> {
        self.execute("migrate-start-postcopy", json!({})).map(drop)
    }

    /// Cancels the migration.
    pub fn cancel_migration(&mut self) -> Result<(), LabError> {
        self.execute("migrate_cancel", json!({})).map(drop)
    }

    /// The state of the migration.
    pub fn migration(&mut self) -> Result<MigrationStatus, LabError> {
        let answer = self.execute("query-migrate", json!({}))?;
        Ok(MigrationStatus::read(&answer))
    }

    /// Waits until the migration has completed, failed or been cancelled, and returns its last
    /// status.
    pub fn wait_migration(&mut self, limit: Duration) -> Result<MigrationStatus, LabError> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.migration()?;
            if status.is_final() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let seen = format!("{status:?}, {}", self.process.stderr());
                return Err(LabError::Late {
                    what: "the end of the migration",
                    limit,
                    seen,
                });
            }
            // Frequent polling would take a noticeable part of QEMU's time, and of the measurement.
            let event = self.qmp.wait_event(LOOK);
            event.map_err(|source| self.process.broken(source))?;
        }
    }
}

/// Processor time of a process, all of its threads together; also of one that has ended and not
/// been waited for.
///
/// # Errors
/// If there is no such process.
pub fn cpu_time(process: u32) -> Result<Duration, LabError> {
    Ok(Duration::from_millis(
        ticks(&format!("/proc/{process}/stat"))? * TICK_MS,
    ))
}

/// User and system time in a `stat` file of procfs.
fn ticks(path: &str) -> Result<u64, LabError> {
    let stat = fs::read_to_string(path).map_err(io_error("reading a process's times"))?;
    // The name in brackets may contain any character; times are fields 14 and 15, and the field
    // after the name is number 3.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let times = fields.split_whitespace().skip(11).take(2);
    Ok(times.filter_map(|field| field.parse::<u64>().ok()).sum())
}

/// The unit of procfs's times, the same on every current Linux (USER_HZ).
const TICK_MS: u64 = 10;

/// The process and its files. The process is killed before the files go.
#[derive(Debug)]
struct Process {
    child: Child,
    folder: Folder,
}

impl Process {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.dir.path().join(name)
    }

    fn stderr(&self) -> String {
        fs::read(self.path("stderr"))
            .map(|text| String::from_utf8_lossy(&text).trim().to_owned())
            .unwrap_or_default()
    }

    /// The error for a failed control connection, most often because the process has ended.
    fn broken(&mut self, source: QmpError) -> LabError {
        self.ended().unwrap_or_else(|| LabError::Qmp {
            said: self.stderr(),
            source,
        })
    }

    /// The error for a process that has ended.
    fn ended(&mut self) -> Option<LabError> {
        // A process closes its sockets shortly before it can be waited for.
        for _ in 0..10 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(LabError::Ended {
                    status,
                    said: self.stderr(),
                });
            }
            thread::sleep(POLL);
        }
        None
    }

    fn connect(&mut self) -> Result<Qmp, LabError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match Qmp::connect(&self.path("qmp")) {
                Ok(qmp) => return Ok(qmp),
                Err(QmpError::Nobody { .. } | QmpError::NoGreeting { .. } | QmpError::Io(_))
                    if Instant::now() < deadline => {}
                Err(source) => {
                    return Err(LabError::Qmp {
                        said: self.stderr(),
                        source,
                    });
                }
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(LabError::Ended {
                    status,
                    said: self.stderr(),
                });
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A QEMU that hangs in a broken migration reacts to nothing else. It may also have ended
        // already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for a process's files, and the lock that marks it as in use.
#[derive(Debug)]
struct Folder {
    dir: TempDir,
    _in_use: File,
}

/// Makes a new folder. First removes the folders of killed owners, which hold guests' memory.
fn new_folder() -> io::Result<Folder> {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(FOLDER)?;
    // It gets its name after it is locked, so it is never visible unlocked.
    let making = dir.path().join("making");
    let in_use = File::create(&making)?;
    in_use.lock()?;
    fs::rename(making, dir.path().join(IN_USE))?;
    Ok(Folder {
        dir,
        _in_use: in_use,
    })
}

/// Removes the unlocked folders. A lock ends with its owner, in any container; a process ID is only
/// meaningful inside its own.
fn sweep() {
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !is_ours {
            continue;
        }
        let lock = File::open(entry.path().join(IN_USE));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            // It may belong to another user, or another process may be removing it as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Makes Linux kill the process when the thread that starts it ends.
fn tied_to_parent(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL"])
        .arg(command.get_program())
        .args(command.get_args());
    tied.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    tied
}

/// Starts a process from a thread that lives as long as this process, so that a QEMU never outlives
/// a killed test.
fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in receiver {
                // The requester waits for the answer, so it can be delivered.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (answer, result) = mpsc::channel();
    spawner.send((command, answer)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::{Folder, new_folder, sweep};

    #[test]
    fn only_folders_that_nobody_uses_are_removed() {
        let used = new_folder().unwrap();
        let Folder { dir, _in_use } = new_folder().unwrap();
        sweep();
        assert!(used.dir.path().exists() && dir.path().exists());
        // As if its owner had been killed.
        drop(_in_use);
        sweep();
        assert!(used.dir.path().exists() && !dir.path().exists());
    }
}
