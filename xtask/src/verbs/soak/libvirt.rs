//! Guests of two libvirtd move through relays, as docs/libvirt.md tells it.
//!
//! Each host is a root of Debian's packages with a network, mounts and processes of its own, which
//! end with this process. The guests are those of the tests, so every byte of their memory is
//! checked after each move.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use multifd_bench::links::{Link, LinkEnd};
use qemu_lab::{Guest, Part, Ram, Root, SETUP_COMMAND};
use serde_json::Value;
use testkit::process::{Pipe, Process};

use crate::{Result, multifd, output};

/// The script that a host runs at its start.
const HOST: &str = include_str!("host.sh");

/// Far longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(40);

/// Moves guests, or says what this machine lacks.
pub fn run() -> Result<()> {
    let Some(root) = Root::of(Part::Libvirt) else {
        let part = Part::Libvirt.name();
        println!("NOT RUN: soak libvirt: needs {part}, which `{SETUP_COMMAND} {part}` brings");
        return Ok(());
    };
    let link = match Link::new("1gbit") {
        Ok(link) => link,
        Err(error) => {
            println!("NOT RUN: soak libvirt: needs root, unshare, nsenter, ip and tc: {error}");
            return Ok(());
        }
    };
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let shared = folder.path().join("shared");
    fs::create_dir(&shared)?;
    fs::copy(multifd::build()?, shared.join("multifd"))?;
    let [left, right] = link.ends();
    let hosts = [
        Host::start(1, left, &root, folder.path())?,
        Host::start(2, right, &root, folder.path())?,
    ];
    // Half of the memory is in use, and pages change all the time.
    let guest = Guest {
        ram_mib: 64,
        still: 8000,
        ..Guest::default()
    };
    fs::write(shared.join("firmware"), guest.firmware())?;
    for name in ["vm1", "vm2"] {
        hosts[0].boot(name, &guest)?;
    }
    let [one, two] = &hosts;
    let (trunk, sockets) = (two.trunk(4444), "unix:/run/to-host2/{name}.sock");
    for host in [one, two] {
        host.run(&["mkdir", "/run/to-host2"])?;
    }
    let far = two.relay(&trunk, sockets, &[])?;
    let near = one.relay(sockets, &trunk, &[])?;
    let lab = Lab {
        hosts,
        guest,
        near,
        far,
    };
    lab.both_at_once()?;
    lab.back_over_tcp()?;
    lab.abort()?;
    lab.to_stock()
}

struct Lab {
    hosts: [Host; 2],
    guest: Guest,
    /// Relays from the first host to the second.
    near: Process,
    far: Process,
}

impl Lab {
    /// Two guests at the same time, through one port, each by the name of its socket.
    fn both_at_once(&self) -> Result<()> {
        let [one, two] = &self.hosts;
        let mut moves = Vec::new();
        for name in ["vm1", "vm2"] {
            let uri = one.ask_for_socket(name)?;
            let options = ["--p2p", "--parallel", "--migrateuri", &uri];
            moves.push(one.migrate(name, two, &options)?);
        }
        for process in moves {
            one.end_of(&process)?;
        }
        for number in 0..2 {
            println!(
                "two guests at once, p2p, parallel, unix sockets, a trunk: {:.2}:1",
                report(&self.near, number)?["ratio"].as_f64().unwrap_or(0.0)
            );
            report(&self.far, number)?;
        }
        self.check(two, &["vm1", "vm2"])
    }

    /// Without p2p, over TCP: libvirt gives the URI of the relay to the destination's QEMU too.
    fn back_over_tcp(&self) -> Result<()> {
        let [one, two] = &self.hosts;
        let (trunk, qemu) = (one.trunk(4445), "tcp:127.0.0.1:49300");
        let far = one.relay(&trunk, qemu, &[])?;
        let near = two.relay(qemu, &trunk, &[])?;
        for (number, name) in ["vm1", "vm2"].into_iter().enumerate() {
            let uri = "tcp://127.0.0.1:49300";
            let options = [
                "--parallel",
                "--listen-address",
                "127.0.0.1",
                "--migrateuri",
                uri,
            ];
            two.end_of(&two.migrate(name, one, &options)?)?;
            report(&near, number)?;
            report(&far, number)?;
        }
        println!("back, without p2p, parallel, tcp");
        self.check(one, &["vm1", "vm2"])
    }

    /// A migration that would take minutes is aborted; the guest stays, and the next one goes
    /// through.
    fn abort(&self) -> Result<()> {
        let [one, two] = &self.hosts;
        let uri = one.ask_for_socket("vm1")?;
        let options = ["--p2p", "--parallel", "--migrateuri", &uri];
        let slow = [&options[..], &["--bandwidth", "1"]].concat();
        let process = one.migrate("vm1", two, &slow)?;
        one.wait_until(&["virsh", "domjobinfo", "vm1"], |said| {
            said.contains("Memory remaining") && !said.contains("Memory processed: 0")
        })?;
        one.virsh(&["domjobabort", "vm1"])?;
        if one.end_of(&process).is_ok() {
            return Err("a migration that was aborted went through".into());
        }
        let told: Value = serde_json::from_str(&self.near.line(Pipe::Stdout, 2, PATIENCE)?)?;
        if told["confirmed"] != false {
            return Err(format!("the relay says of an aborted migration: {told}").into());
        }
        println!("aborted: {}", told["error"]);
        self.check(one, &["vm1"])?;
        one.end_of(&one.migrate("vm1", two, &options)?)?;
        report(&self.near, 3)?;
        self.check(two, &["vm1"])
    }

    /// One relay at the source, nothing of ours at the destination.
    fn to_stock(&self) -> Result<()> {
        let [one, two] = &self.hosts;
        let (listen, connect) = (
            "tcp:127.0.0.1:49301",
            format!("tcp:{}:49301", two.address()),
        );
        let options = ["--compression", "zlib", "--recode", "--effort", "balanced"];
        let relay = one.relay(listen, &connect, &options)?;
        let words = "--parallel --compressed --comp-methods zlib --comp-zlib-level 0 --migrateuri \
                     tcp://127.0.0.1:49301 --listen-address";
        let options: Vec<&str> = words.split(' ').chain([two.address()]).collect();
        one.end_of(&one.migrate("vm2", two, &options)?)?;
        let report = report(&relay, 0)?;
        let ratio = report["ratio"].as_f64().unwrap_or(0.0);
        println!("to a stock destination, zlib by one relay: {ratio:.2}:1");
        if ratio < 1.2 {
            return Err(format!("nothing was compressed: {report}").into());
        }
        self.check(two, &["vm2"])
    }

    /// Compares every byte of guests at a host, and lets them run on.
    fn check(&self, host: &Host, names: &[&str]) -> Result<()> {
        for name in names {
            host.virsh(&["suspend", name])?;
            let progress = self.guest.check_memory(&Ram::open(&host.ram(name)?)?)?;
            host.virsh(&["resume", name])?;
            let serial = fs::read_to_string(host.shared.join(format!("{name}.serial")))?;
            if serial.contains('E') {
                return Err(format!("{name} has found a wrong page: {serial}").into());
            }
            println!("    {name} is whole, in its pass {}", progress.pass);
        }
        Ok(())
    }
}

/// The report on a relay's next migration, which the destination has confirmed.
fn report(relay: &Process, number: usize) -> Result<Value> {
    let report: Value = serde_json::from_str(&relay.line(Pipe::Stdout, number, PATIENCE)?)?;
    match report["confirmed"] == true && report["channels"].as_u64() > Some(0) {
        true => Ok(report),
        false => Err(format!("the relay says: {report}").into()),
    }
}

/// A libvirtd in namespaces of its own. Its processes end when it is dropped.
struct Host {
    number: u32,
    end: LinkEnd,
    holder: Child,
    root: PathBuf,
    shared: PathBuf,
}

impl Host {
    fn start(number: u32, end: &LinkEnd, root: &Root, folder: &Path) -> Result<Host> {
        let (top, shared) = (folder.join(format!("host{number}")), folder.join("shared"));
        fs::create_dir(&top)?;
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                HOST,
            ])
            .env("ROOT", root.dir())
            .env("TOP", &top)
            .env("SHARED", &shared)
            .env("NUMBER", number.to_string());
        let mut command = end.command(&command);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.stderr(File::create(shared.join(format!("host{number}.log")))?);
        let host = Host {
            number,
            end: end.clone(),
            holder: command.spawn()?,
            root: top.join("root"),
            shared,
        };
        host.wait_until(&["virsh", "version"], |_| true)?;
        Ok(host)
    }

    fn address(&self) -> &str {
        self.end.address()
    }

    fn trunk(&self, port: u16) -> String {
        format!("trunk+tcp:{}:{port}", self.address())
    }

    /// A command inside.
    fn command(&self, words: &[&str]) -> Command {
        let ns = format!("/proc/{}/ns", self.holder.id());
        let mut command = Command::new("nsenter");
        command.args([
            format!("--mount={ns}/mnt"),
            format!("--uts={ns}/uts"),
            format!("--net={ns}/net"),
            format!("--pid={ns}/pid_for_children"),
        ]);
        command.arg("chroot").arg(&self.root).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        output(&mut self.command(words))
    }

    fn virsh(&self, words: &[&str]) -> Result<String> {
        self.run(&[&["virsh"], words].concat())
    }

    fn wait_until(&self, words: &[&str], is_there: impl Fn(&str) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            match self.run(words) {
                Ok(said) if is_there(&said) => return Ok(()),
                outcome if begun.elapsed() > PATIENCE => {
                    let log = format!("host{}.log", self.number);
                    let log = fs::read_to_string(self.shared.join(log))?;
                    return Err(format!("{words:?}: {outcome:?}; its host says:\n{log}").into());
                }
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn relay(&self, listen: &str, connect: &str, options: &[&str]) -> Result<Process> {
        let words = ["/shared/multifd", "relay", "--json", "--insecure"];
        let legs = ["--listen", listen, "--connect", connect];
        let relay = Process::start(&mut self.command(&[&words[..], &legs, options].concat()))?;
        relay.address(PATIENCE)?;
        Ok(relay)
    }

    /// Asks the relay that watches the folder for a socket, and returns its migration URI.
    fn ask_for_socket(&self, name: &str) -> Result<String> {
        let path = format!("/run/to-host2/{name}.sock");
        self.run(&["touch", &path])?;
        self.wait_until(&["test", "-S", &path], |_| true)?;
        Ok(format!("unix://{path}"))
    }

    fn migrate(&self, name: &str, to: &Host, options: &[&str]) -> Result<Process> {
        let to = format!("qemu+tcp://{}/system", to.address());
        let words = ["virsh", "migrate", "--live", name, &to];
        Ok(Process::start(
            &mut self.command(&[&words, options].concat()),
        )?)
    }

    fn end_of(&self, process: &Process) -> Result<()> {
        let is_well = process
            .wait(PATIENCE)
            .is_some_and(|status| status.success());
        let said = || process.lines(Pipe::Stderr).join("\n");
        is_well.then_some(()).ok_or_else(|| said().into())
    }

    /// Starts a guest, with its memory filled.
    fn boot(&self, name: &str, guest: &Guest) -> Result<()> {
        let definition = self.shared.join(format!("{name}.xml"));
        fs::write(&definition, domain(name, guest.ram_mib))?;
        self.virsh(&["create", "--paused", &format!("/shared/{name}.xml")])?;
        guest.fill(&File::options().write(true).open(self.ram(name)?)?)?;
        self.virsh(&["resume", name]).map(drop)
    }

    /// The file with a guest's memory, in the folder that libvirt makes for each start of it.
    fn ram(&self, name: &str) -> Result<PathBuf> {
        let folder = self.shared.join(format!("ram{}/libvirt/qemu", self.number));
        let ending = format!("-{name}");
        let mut folders: Vec<_> = fs::read_dir(&folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.display().to_string().ends_with(&ending))
            .collect();
        folders.sort();
        let newest = folders
            .pop()
            .ok_or("libvirt made no folder for a guest's memory")?;
        Ok(newest.join("pc.ram"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // It may have ended already.
        let _ = self.holder.wait();
    }
}

/// A guest without tables that the machine would write, as in [`qemu_lab`].
fn domain(name: &str, mib: u32) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>{mib}</memory>
<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
<os><type machine='q35'>hvm</type><loader readonly='yes' type='rom'>/shared/firmware</loader></os>
<devices><controller type='usb' model='none'/><memballoon model='none'/>
<serial type='file'><source path='/shared/{name}.serial'/></serial></devices></domain>"
    )
}
