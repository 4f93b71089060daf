//! The rights that a relay gives up before it opens its first socket: a peer that took it over
//! could not start programs, and could not read or change files that have nothing to do with
//! migrations.
//!
//! * **No new privileges**: no program that it could start would gain any.
//! * **Landlock**: reading stays for the system's folders (libraries, name resolution, `/proc`,
//!   `/sys`) and the certificates. Making and removing sockets stays for the folders of listening
//!   sockets, and writing files for the folder of `--report`. All else is gone: execution, writing,
//!   every other folder.
//! * **seccomp**: calls of the system that no relay has a use for fail with `EPERM`. It is a list
//!   of what is denied, so a C library that makes other calls than today's goes on working.
//!
//! All of it is put on before the first thread, because a thread that exists already would be
//! outside of Landlock. A kernel that lacks a part goes on without it, and the log says what there
//! is. Calls of connected sockets and `connect` are not limited: a relay dials where it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use multifd_codec::Accel;
use multifd_transport::Address;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::args::RelayArgs;
use crate::relay::Route;

/// The rights of files that are taken away. Kernels since 6.10 know all of them; older ones take
/// away what they know.
const RIGHTS: ABI = ABI::V5;

/// Folders and files that stay readable: for the C library, which loads modules and reads files
/// when it resolves a name, and for facts about the machine.
const SYSTEM: [&str; 14] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    // Some distributions have all libraries here.
    "/nix",
    "/gnu",
    // `/etc/resolv.conf` leads here as a rule.
    "/run",
    // Services of names: nscd, sssd, extrausers.
    "/var/cache/nscd",
    "/var/lib/sss",
    "/var/lib/extrausers",
    "/proc",
    "/sys",
    "/dev/urandom",
];

/// The rights that a relay has given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// The parts that it got, in words.
    parts: Vec<String>,
    /// Why parts are missing.
    missing: Vec<String>,
}

impl Sandbox {
    /// No sandbox, for `--no-sandbox`.
    pub(crate) fn none() -> Self {
        let missing = vec!["--no-sandbox".to_owned()];
        Self {
            missing,
            ..Self::default()
        }
    }

    /// Gives up what the relay of these routes has no use for. Only the calling thread, and those
    /// that it makes from now on, are limited.
    pub(crate) fn enter(args: &RelayArgs, routes: &[Route]) -> Self {
        let mut sandbox = Self::default();
        match args.codec.accel().0 {
            Accel::None | Accel::Software => sandbox.took(landlock(args, routes)),
            // libqpl is opened from where the loader finds it, and maps devices.
            accel => sandbox.missing.push(format!(
                "no landlock with --accel {accel}, which needs devices"
            )),
        }
        sandbox.took(seccomp());
        sandbox
    }

    /// Gives up calls of the system alone: for a relay whose sockets are made where a QEMU needs
    /// them.
    pub(crate) fn calls() -> Self {
        let mut sandbox = Self::default();
        sandbox.took(seccomp());
        sandbox
    }

    /// What a relay would get here, found out by a thread that gives it up and ends.
    pub(crate) fn probe() -> Self {
        let thread = std::thread::Builder::new().spawn(|| {
            let mut sandbox = Self::default();
            let system = SYSTEM.iter().map(PathBuf::from);
            let reading = AccessFs::ReadFile | AccessFs::ReadDir;
            sandbox.took(restrict(system.map(|path| (path, reading))));
            sandbox.took(seccomp());
            sandbox
        });
        let found = thread.ok().and_then(|thread| thread.join().ok());
        found.unwrap_or_else(|| Self {
            parts: Vec::new(),
            missing: vec!["this host gives no thread".to_owned()],
        })
    }

    /// Whether no part is missing.
    pub(crate) fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    fn took(&mut self, outcome: Result<String, String>) {
        match outcome {
            Ok(part) => self.parts.push(part),
            Err(reason) => self.missing.push(reason),
        }
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = match self.parts.is_empty() {
            true => "none".to_owned(),
            false => self.parts.join(", "),
        };
        write!(f, "sandbox: {parts}")?;
        match self.missing.is_empty() {
            true => Ok(()),
            false => write!(f, " ({})", self.missing.join("; ")),
        }
    }
}

fn landlock(args: &RelayArgs, routes: &[Route]) -> Result<String, String> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let sockets = AccessFs::MakeSock | AccessFs::RemoveFile | AccessFs::ReadDir;
    let readable = SYSTEM.iter().map(PathBuf::from);
    let readable = readable.chain(args.tls_dir.iter().flat_map(|dir| certificates(dir)));
    let rules = readable.map(|path| (path, reading));
    // A report is made, written, and gets another name.
    let files = reading | AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::RemoveFile;
    let reports = args.report.iter().map(|folder| (folder.clone(), files));
    let listening = listening(args, routes).into_iter();
    let listening = listening.map(|path| (path, sockets));
    restrict(rules.chain(listening).chain(reports))
}

/// Gives up all rights of files but these.
fn restrict(rules: impl Iterator<Item = (PathBuf, BitFlags<AccessFs>)>) -> Result<String, String> {
    let failed = |error: &dyn std::error::Error| format!("no landlock: {error}");
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))
        .and_then(|ruleset| ruleset.scope(Scope::Signal))
        .and_then(Ruleset::create)
        .map_err(|error| failed(&error))?;
    for (path, rights) in rules {
        // A missing file needs no right.
        let Ok(opened) = PathFd::new(&path) else {
            continue;
        };
        let rights: BitFlags<AccessFs> = match path.is_dir() {
            true => rights,
            false => rights & AccessFs::from_file(RIGHTS),
        };
        ruleset = ruleset
            .add_rule(PathBeneath::new(opened, rights))
            .map_err(|error| failed(&error))?;
    }
    let status = ruleset.restrict_self().map_err(|error| failed(&error))?;
    match (status.ruleset, status.landlock) {
        (
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced,
            LandlockStatus::Available { effective_abi, .. },
        ) => Ok(format!("landlock ABI {}", effective_abi as i32)),
        (_, LandlockStatus::NotEnabled) => Err("landlock is not enabled in this kernel".to_owned()),
        _ => Err("this kernel has no landlock".to_owned()),
    }
}

/// The folder of each listening unix socket.
fn listening(args: &RelayArgs, routes: &[Route]) -> BTreeSet<PathBuf> {
    let paths = routes
        .iter()
        .map(|route| &route.listen.address)
        .chain(&args.metrics)
        .filter_map(Address::unix_path);
    paths.map(folder_of).collect()
}

/// Where certificates are read, also when they are read anew: their folder, the folder in which it
/// may be replaced by another of its name, and those that its links lead to.
fn certificates(folder: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::from([folder.to_owned()]);
    let above = folder_of(folder);
    if above.parent().is_some() {
        all.insert(above);
    }
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let real = files.filter_map(|file| std::fs::canonicalize(file.path()).ok());
    all.extend(real.map(|file| folder_of(&file)));
    all
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        Some(_) => PathBuf::from("."),
        None => path.to_owned(),
    }
}

fn seccomp() -> Result<String, String> {
    let failed = |error: &dyn fmt::Display| format!("no seccomp: {error}");
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|error| failed(&error))?;
    let denied = denied();
    let rules: BTreeMap<_, _> = denied.into_iter().map(|call| (call, Vec::new())).collect();
    let answer = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch)
        .map_err(|error| failed(&error))?;
    let program: BpfProgram = filter.try_into().map_err(|error| failed(&error))?;
    // It switches new privileges off too.
    apply_filter(&program).map_err(|error| failed(&error))?;
    Ok("seccomp".to_owned())
}

/// The calls of the system that no relay has a use for, by number.
fn denied() -> BTreeSet<i64> {
    // To start programs, and to reach into other processes.
    let processes = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
    ];
    // To become another user.
    let users = [
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setreuid,
        libc::SYS_setregid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setfsuid,
        libc::SYS_setfsgid,
        libc::SYS_setgroups,
        libc::SYS_capset,
        libc::SYS_personality,
    ];
    // To change what the process sees of the machine.
    let mounts = [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mknodat,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_fanotify_init,
        libc::SYS_quotactl,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
    ];
    // To change the machine.
    let machine = [
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_reboot,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_adjtimex,
        libc::SYS_clock_adjtime,
        libc::SYS_syslog,
        libc::SYS_vhangup,
    ];
    // Large parts of the kernel, in which most of its holes were.
    let kernel = [
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
    ];
    #[cfg(target_arch = "x86_64")]
    let of_this_machine = [
        libc::SYS_mknod,
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_modify_ldt,
        libc::SYS_uselib,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let of_this_machine: [i64; 0] = [];
    let all = processes
        .into_iter()
        .chain(users)
        .chain(mounts)
        .chain(machine)
        .chain(kernel)
        .chain(of_this_machine);
    // The same calls with short pointers, by other numbers.
    let short = match cfg!(target_arch = "x86_64") {
        true => X32_BIT,
        false => 0,
    };
    all.flat_map(|call| [call, call | short]).collect()
}

/// The bit in the numbers of x86-64's calls with pointers of 32 bits (syscall(2)).
const X32_BIT: i64 = 0x4000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_named() {
        assert_eq!(Sandbox::none().to_string(), "sandbox: none (--no-sandbox)");
        let mut sandbox = Sandbox::default();
        sandbox.took(Ok("landlock ABI 5".to_owned()));
        sandbox.took(Ok("seccomp".to_owned()));
        assert_eq!(sandbox.to_string(), "sandbox: landlock ABI 5, seccomp");
        sandbox.took(Err("why".to_owned()));
        assert!(sandbox.to_string().ends_with(" (why)"));
    }

    #[test]
    fn certificates_are_read_where_their_links_lead() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        for name in ["live", "archive"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("archive/key1.pem"), "").unwrap();
        std::os::unix::fs::symlink("../archive/key1.pem", at("live/key.pem")).unwrap();
        let all = certificates(&at("live"));
        assert_eq!(all, BTreeSet::from([at(""), at("live"), at("archive")]));
        assert_eq!(folder_of(Path::new("pki")), Path::new("."));
        assert!(!certificates(Path::new("/pki")).contains(Path::new("/")));
    }
}
