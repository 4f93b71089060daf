//! A guest's process, which this program itself serves on request.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use multifd_bench::guests::{Guest, GuestError, Kind, Ram, Spec, serve};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(SERVE) {
        let served = serve(&mut io::stdin().lock(), &mut io::stdout(), FileRam::make);
        return if served.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let tests: [(&str, fn()); 6] = [
        (
            "the same seed gives the same memory and another gives another",
            seeds,
        ),
        ("nothing is written while it is paused", pausing),
        ("a redis keeps its records", redis_stays_sound),
        ("an image is what the file holds", images),
        ("impossible guests are refused", refusals),
        (
            "a killed guest is noticed, and a dropped one is gone",
            killed,
        ),
    ];
    for (name, test) in tests {
        // A failing assertion ends the program with its message.
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

const SERVE: &str = "serve";
const MEMORY: u64 = 8 << 20;

/// Memory without a mapping: writes go to the file.
struct FileRam(File);

impl FileRam {
    fn make(bytes: u64) -> io::Result<Self> {
        let file = tempfile::tempfile()?;
        file.set_len(bytes)?;
        Ok(Self(file))
    }
}

impl Ram for FileRam {
    fn file(&self) -> &File {
        &self.0
    }

    fn address(&self) -> u64 {
        0x1000
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(8) && bytes.len().is_multiple_of(8));
        assert!(offset + bytes.len() as u64 <= self.0.metadata()?.len());
        self.0.write_all_at(bytes, offset)
    }
}

fn start(spec: &Spec) -> Result<Guest, GuestError> {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    Guest::start(command.arg(SERVE), spec)
}

fn guest(kind: Kind, rate: u64) -> Guest {
    let spec = Spec {
        rate,
        threads: 2,
        ..Spec::new(kind, MEMORY)
    };
    start(&spec).expect("a guest")
}

fn memory(guest: &Guest) -> Vec<u8> {
    let mut memory = vec![0; MEMORY as usize];
    guest
        .memory()
        .read_exact_at(&mut memory, 0)
        .expect("its memory");
    memory
}

fn seeds() {
    for kind in [Kind::Idle, Kind::Redis] {
        let digest = |seed| {
            let spec = Spec {
                seed,
                rate: 0,
                ..Spec::new(kind.clone(), MEMORY)
            };
            start(&spec)
                .and_then(|mut guest| guest.digest())
                .expect("a digest")
        };
        let first = digest(1);
        assert_eq!(first.len(), 64);
        assert_eq!(first, digest(1));
        assert_ne!(first, digest(2));
    }
}

fn wait_until(mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !happened() {
        assert!(Instant::now() < deadline, "it hangs");
        thread::sleep(Duration::from_millis(1));
    }
}

fn pausing() {
    for kind in [Kind::Idle, Kind::Redis] {
        let mut guest = guest(kind, 1_000_000);
        assert_eq!(guest.addresses(), 0x1000..0x1000 + MEMORY);
        let mut acts = 0;
        for _ in 0..5 {
            wait_until(|| guest.resume().expect("a guest") > acts);
            acts = guest.pause().expect("a guest");
            let digest = guest.digest().expect("a digest");
            thread::sleep(Duration::from_millis(5));
            assert_eq!(guest.digest().expect("a digest"), digest);
            assert_eq!(guest.resume().expect("a guest"), acts);
        }
        assert!(guest.stop().expect("a guest") >= acts);
    }
}

/// Updates free and allocate memory, but no value is lost or duplicated.
fn redis_stays_sound() {
    let mut guest = guest(Kind::Redis, 500_000);
    let before = memory(&guest);
    wait_until(|| guest.resume().expect("a guest") > 10_000);
    guest.pause().expect("a guest");
    let after = memory(&guest);
    let changed = before
        .chunks(4096)
        .zip(after.chunks(4096))
        .filter(|(a, b)| a != b)
        .count();
    assert!(changed > 50, "{changed} pages were written");
    // A value's header is on one page, even if its text continues on another.
    let values = |memory: &[u8]| {
        memory
            .windows(3)
            .filter(|bytes| *bytes == [100, 100, 1])
            .count()
    };
    assert_eq!(values(&before), values(&after));
}

fn images() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let contents: Vec<u8> = (0..3 << 20_u32)
        .map(|index: u32| (index / 4096 + index) as u8)
        .collect();
    file.write_all(&contents).expect("a file");
    let kind = Kind::Image(file.path().to_owned());
    let still = guest(kind.clone(), 0);
    let (image, rest) = (
        contents.as_slice(),
        vec![0; MEMORY as usize - contents.len()],
    );
    assert!(memory(&still) == [image, &rest].concat());
    let mut busy = guest(kind, 10_000);
    wait_until(|| busy.resume().expect("a guest") > 0);
    busy.pause().expect("a guest");
    assert!(memory(&busy) != memory(&still));
}

fn refusals() {
    let failed = |spec: &Spec| match start(spec) {
        Err(GuestError::Failed(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(failed(&Spec::new(Kind::Idle, 4096)).contains("at least 1048576 bytes"));
    let nowhere = Kind::Image("/no/such/file".into());
    assert!(failed(&Spec::new(nowhere, MEMORY)).starts_with("cannot open /no/such/file"));
    let nobody = Guest::start(
        &mut Command::new("/no/such/program"),
        &Spec::new(Kind::Idle, MEMORY),
    );
    assert!(matches!(nobody, Err(GuestError::Process(_))));
    let other = Guest::start(&mut Command::new("true"), &Spec::new(Kind::Idle, MEMORY));
    assert!(matches!(other, Err(GuestError::Silent(_))), "{other:?}");
}

fn killed() {
    let mut guest = guest(Kind::Idle, 0);
    let pid = guest.pid();
    let is_there = || std::path::Path::new(&format!("/proc/{pid}")).exists();
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.expect("kill").success());
    let outcome = guest.pause().and_then(|_| guest.resume());
    assert!(matches!(outcome, Err(GuestError::Silent(_))), "{outcome:?}");
    drop(guest);
    assert!(!is_there());
}
