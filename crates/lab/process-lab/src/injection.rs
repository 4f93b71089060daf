//! System calls of another process, made for it by `ptrace(2)`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::thread;
use std::time::Duration;

use libc::{c_long, c_uint, c_void, pid_t, user_regs_struct};

/// Has the process make a userfaultfd and register `ranges` with it, for asynchronous write
/// protection. The descriptor stays open there.
///
/// # Errors
///
/// When the process cannot be traced, is never seen in a system call, or its kernel refuses.
pub fn register(pid: u32, memory: &File, ranges: &[Range<u64>]) -> io::Result<()> {
    let mut tracee = Tracee::seize(pid, memory)?;
    let userfaultfd = tracee.call(libc::SYS_userfaultfd, [FLAGS, 0, 0])?;
    tracee.ioctl(userfaultfd, UFFDIO_API, &[API, FEATURES, 0])?;
    for range in ranges {
        let length = range.end - range.start;
        let register = [range.start, length, REGISTER_MODE_WP, 0];
        tracee.ioctl(userfaultfd, UFFDIO_REGISTER, &register)?;
    }
    Ok(())
}

/// A process whose first thread stands still in a system call. Dropped, it goes on where it was.
struct Tracee<'a> {
    pid: pid_t,
    memory: &'a File,
    /// Where it was.
    saved: user_regs_struct,
}

impl<'a> Tracee<'a> {
    fn seize(pid: u32, memory: &'a File) -> io::Result<Self> {
        let pid = pid_t::try_from(pid).map_err(io::Error::other)?;
        trace(libc::PTRACE_SEIZE, pid, ptr::null_mut())?;
        let tracee = stopped_in_call(pid, memory).map(|saved| Self { pid, memory, saved });
        if tracee.is_err() {
            // The error that there is already is the one to be told.
            let _ = detach(pid);
        }
        tracee
    }

    /// Makes a system call with these arguments.
    fn call(&mut self, number: c_long, [a, b, c]: [u64; 3]) -> io::Result<u64> {
        let mut registers = user_regs_struct {
            rip: self.saved.rip - SYSCALL.len() as u64,
            rax: number as u64,
            // No call that would have to be begun anew.
            orig_rax: u64::MAX,
            rdi: a,
            rsi: b,
            rdx: c,
            ..self.saved
        };
        trace(
            libc::PTRACE_SETREGS,
            self.pid,
            ptr::from_mut(&mut registers).cast(),
        )?;
        trace(libc::PTRACE_SINGLESTEP, self.pid, ptr::null_mut())?;
        wait(self.pid)?;
        let result = registers_of(self.pid)?.rax as i64;
        if result < 0 {
            let errno = i32::try_from(-result).unwrap_or(i32::MAX);
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(result as u64)
    }

    /// Makes an `ioctl` with a structure of words, which lies below the red zone of its stack
    /// meanwhile.
    fn ioctl(&mut self, descriptor: u64, request: u64, words: &[u64]) -> io::Result<u64> {
        let place = (self.saved.rsp - BELOW_STACK) & !0xf;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut before = vec![0; bytes.len()];
        self.memory.read_exact_at(&mut before, place)?;
        self.memory.write_all_at(&bytes, place)?;
        let outcome = self.call(libc::SYS_ioctl, [descriptor, request, place]);
        self.memory.write_all_at(&before, place)?;
        outcome
    }
}

impl Drop for Tracee<'_> {
    fn drop(&mut self) {
        let mut saved = self.saved;
        // If it has ended meanwhile, nothing is to be restored.
        let _ = trace(
            libc::PTRACE_SETREGS,
            self.pid,
            ptr::from_mut(&mut saved).cast(),
        );
        let _ = trace(libc::PTRACE_DETACH, self.pid, ptr::null_mut());
    }
}

/// Lets a traced process go. It can be let go only while it stands still.
fn detach(pid: pid_t) -> io::Result<()> {
    let detach = || trace(libc::PTRACE_DETACH, pid, ptr::null_mut());
    detach().or_else(|_| {
        trace(libc::PTRACE_INTERRUPT, pid, ptr::null_mut())?;
        wait(pid)?;
        detach()
    })
}

/// Stops a seized process until it is in a system call; its registers then.
fn stopped_in_call(pid: pid_t, memory: &File) -> io::Result<user_regs_struct> {
    for _ in 0..ATTEMPTS {
        trace(libc::PTRACE_INTERRUPT, pid, ptr::null_mut())?;
        wait(pid)?;
        let registers = registers_of(pid)?;
        let mut instruction = [0; SYSCALL.len()];
        let before = registers.rip.wrapping_sub(SYSCALL.len() as u64);
        let is_call =
            memory.read_exact_at(&mut instruction, before).is_ok() && instruction == SYSCALL;
        if is_call && registers.orig_rax as i64 >= 0 {
            return Ok(registers);
        }
        trace(libc::PTRACE_CONT, pid, ptr::null_mut())?;
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("the process is never in a system call"))
}

fn registers_of(pid: pid_t) -> io::Result<user_regs_struct> {
    let mut registers = MaybeUninit::<user_regs_struct>::zeroed();
    trace(libc::PTRACE_GETREGS, pid, registers.as_mut_ptr().cast())?;
    // SAFETY: plain numbers, for which zeros would do as well as what the system has written.
    Ok(unsafe { registers.assume_init() })
}

/// A request to `ptrace`, whose data, where it has some, is a `user_regs_struct`.
fn trace(request: c_uint, pid: pid_t, data: *mut c_void) -> io::Result<()> {
    // SAFETY: the requests of this module take no address; those that read or write at `data` are
    // given a structure of the right type. What they change is the other process, which is its
    // owner's business.
    match unsafe { libc::ptrace(request, pid, ptr::null_mut::<c_void>(), data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until the process stands still.
fn wait(pid: pid_t) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: `status` is written during the call only.
    if unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } == -1 {
        return Err(io::Error::last_os_error());
    }
    match libc::WIFSTOPPED(status) {
        true => Ok(()),
        false => Err(io::Error::other("the process has ended")),
    }
}

/// The instruction of a system call.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// A server that has nothing to do is in a system call nearly always.
const ATTEMPTS: usize = 1000;
/// The red zone has 128 bytes.
const BELOW_STACK: u64 = 1024;

// Of userfaultfd(2) and ioctl_userfaultfd(2).
const FLAGS: u64 = libc::O_CLOEXEC as u64 | 1;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const API: u64 = 0xaa;
/// Write protection of pages that are not there yet, and without a reader of faults.
const FEATURES: u64 = 1 << 13 | 1 << 15;
const REGISTER_MODE_WP: u64 = 2;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use super::*;

    fn tracer_of(pid: u32) -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("TracerPid:"));
        line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
    }

    /// A process that only computes is never in a system call. It is left as it was found.
    #[test]
    fn a_process_that_cannot_be_used_is_let_go() {
        let mut busy = Command::new("sh")
            .args(["-c", "echo; while :; do :; done"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It has begun to loop, or is about to.
        let mut line = [0];
        io::Read::read_exact(busy.stdout.as_mut().unwrap(), &mut line).unwrap();
        thread::sleep(Duration::from_millis(50));
        let pid = busy.id();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let outcome = register(pid, &memory, &[]);
        let tracer = tracer_of(pid);
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "the process is never in a system call"
        );
        assert_eq!(tracer, "0", "it is still traced");
    }
}
