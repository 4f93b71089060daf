//! Many guests and strangers at once: threads, descriptors and memory.

use super::super::*;
use super::encrypted::certificates;

/// What a process has.
#[derive(Clone, Copy, Debug)]
struct Counts {
    files: usize,
    threads: usize,
    /// KiB of memory.
    memory: u64,
}

impl Counts {
    fn of(relay: &Multifd) -> Self {
        let folder = format!("/proc/{}", relay.id());
        let entries = |name: &str| {
            std::fs::read_dir(format!("{folder}/{name}")).map_or(0, |entries| entries.count())
        };
        let status = std::fs::read_to_string(format!("{folder}/status")).expect("it runs");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = rss.and_then(|rss| rss.trim().trim_end_matches(" kB").parse().ok());
        Self {
            files: entries("fd"),
            threads: entries("task"),
            memory: memory.expect("a number"),
        }
    }

    /// Waits until a relay has no more descriptors and threads than before; what it has then.
    fn back_to(self, relay: &Multifd) -> Self {
        let deadline = Instant::now() + support::DEADLINE;
        loop {
            let now = Self::of(relay);
            if now.files <= self.files && now.threads <= self.threads {
                return now;
            }
            assert!(Instant::now() < deadline, "{now:?}, before: {self:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A guest goes from a source of its own over `trunk` to a destination of its own.
fn delivered(trunk: &str, folder: &Path, name: &str, migration: &Migration) {
    let address = Address::Unix(folder.join(name));
    let destination = Destination::at(&address, 2, support::peers::Limits::default());
    let mut near = relay("tcp:127.0.0.1:0", trunk, &["--once", "--name", name]);
    let source = Source::begin(&near.address(), migration);
    arrives(&destination, &source, migration);
    let ended = near.end();
    assert!(ended.status.success(), "{name}: {ended:?}");
    for (id, bytes) in migration.channels.iter().enumerate() {
        let seen = destination.seen();
        let channel = seen.of(Role::Channel(id as u8)).expect("a channel");
        assert!(channel.bytes == *bytes, "{name}: channel {id} has changed");
    }
}

/// Connections that begin no trunk, or break off within a preface.
fn strangers(port: &Address, count: usize) -> Vec<multifd_transport::Stream> {
    let said: [&[u8]; 6] = [
        b"",
        b"MFDT",
        b"MFDT\x00\x40\x01\x01",
        b"MFDT\xff\xff",
        b"\x16\x03\x01\0\xc8\x01\0\0\xc4\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    let all = (0..count).map(|index| {
        let stranger = dial(port);
        write(&stranger, said[index % said.len()]);
        stranger
    });
    all.collect()
}

/// Twenty guests at once, with strangers, a destination that is stuck and one that fails: each ends
/// as if it were alone, and nothing is left of them.
#[test]
fn twenty_guests_end_each_for_itself() {
    const GUESTS: usize = 20;
    let folder = tempfile::tempdir().expect("a folder");
    let sockets = format!("unix:{}", folder.path().join("{name}").display());
    let mut far = relay("trunk+tcp:127.0.0.1:0", &sockets, &[]);
    let port = trunk_of(&mut far);
    let connect = format!("trunk+{port}");
    let migrations = both(long);
    // What it needs for its first guest it keeps.
    delivered(&connect, folder.path(), "first", &migrations[1]);
    let before = Counts::of(&far);
    let strangers = strangers(&port, 40);
    // One destination takes nothing for as long as the others need.
    let stuck = Address::Unix(folder.path().join("stuck"));
    let nothing = support::peers::Limits {
        main: 0,
        channel: 0,
    };
    let stuck = Destination::at(&stuck, 2, nothing);
    let mut stuck_near = relay("tcp:127.0.0.1:0", &connect, &["--once", "--name", "stuck"]);
    let stuck_source = Source::begin(&stuck_near.address(), &migrations[1]);
    thread::scope(|scope| {
        for guest in 0..GUESTS - 2 {
            let (connect, folder) = (&connect, folder.path());
            let migration = &migrations[guest % 2];
            scope.spawn(move || delivered(connect, folder, &format!("vm{guest}"), migration));
        }
        let (connect, folder) = (&connect, folder.path());
        let migration = &migrations[1];
        scope.spawn(move || {
            let address = Address::Unix(folder.join("fails"));
            let destination = Destination::at(&address, 2, support::peers::Limits::default());
            let mut near = relay("tcp:127.0.0.1:0", connect, &["--once", "--name", "fails"]);
            let source = Source::begin(&near.address(), migration);
            drop(destination.wait("all of it", |seen| seen.has_all(migration)));
            destination.say(Role::Main, &SHUT_FAILED);
            source.hears(&SHUT_FAILED);
            drop(source);
            destination.close_all();
            assert_eq!(near.end().status.code(), Some(1));
        });
    });
    // The stuck one has ended nobody, and ends when its source gives up.
    drop(stuck_source);
    assert_eq!(stuck_near.end().status.code(), Some(1));
    stuck.close_all();
    drop(strangers);
    let after = before.back_to(&far);
    println!("20 guests: {before:?}, then {after:?}");
    assert!(
        after.memory < before.memory + (32 << 10),
        "{before:?} {after:?}"
    );
}

/// A thousand connections that say too little take little, and a guest passes between them.
fn unauthenticated(listen: &str, connect: &str, more: &[&str]) {
    const CALLERS: usize = 1000;
    let folder = tempfile::tempdir().expect("a folder");
    let sockets = format!("unix:{}", folder.path().join("{name}").display());
    let mut far = relay(listen, &sockets, more);
    let port = trunk_of(&mut far);
    let before = Counts::of(&far);
    let strangers = strangers(&port, CALLERS);
    // All of them are listened to: this many a second.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut most = before;
    while Instant::now() < deadline {
        let now = Counts::of(&far);
        most.files = most.files.max(now.files);
        most.threads = most.threads.max(now.threads);
        most.memory = most.memory.max(now.memory);
        thread::sleep(Duration::from_millis(50));
    }
    println!("{listen}, {CALLERS} strangers: {before:?}, at most {most:?}");
    assert!(most.threads <= before.threads, "{before:?} {most:?}");
    // 32 KiB each, of which TLS needs most.
    assert!(
        most.memory < before.memory + (32 << 10),
        "{before:?} {most:?}"
    );
    if more.is_empty() {
        delivered(
            &format!("{connect}{port}"),
            folder.path(),
            "vm",
            &both(short)[1],
        );
    }
    drop(strangers);
    before.back_to(&far);
}

#[test]
fn a_thousand_strangers_take_little_memory() {
    unauthenticated("trunk+tcp:127.0.0.1:0", "trunk+", &[]);
}

#[test]
fn a_thousand_strangers_at_an_encrypted_trunk_take_little_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = certificates(folder.path(), &[]);
    let dir = dir.to_str().expect("a path");
    unauthenticated("trunk:127.0.0.1:0", "", &["--tls-dir", dir]);
}

/// Many in a row and ten at once over one port: what they need does not grow. More with the
/// variable MULTIFD_TRUNK_SOAK.
#[test]
fn memory_and_descriptors_stay_flat() {
    let runs = std::env::var("MULTIFD_TRUNK_SOAK").ok();
    let runs: usize = runs.and_then(|runs| runs.parse().ok()).unwrap_or(20);
    let folder = tempfile::tempdir().expect("a folder");
    let sockets = format!("unix:{}", folder.path().join("{name}").display());
    let mut far = relay("trunk+tcp:127.0.0.1:0", &sockets, &[]);
    let connect = format!("trunk+{}", trunk_of(&mut far));
    let migrations = both(long);
    let warm_up = runs / 10;
    for run in 0..warm_up {
        delivered(
            &connect,
            folder.path(),
            &format!("w{run}"),
            &migrations[run % 2],
        );
    }
    let before = Counts::of(&far);
    println!("after {warm_up}: {before:?}");
    for run in warm_up..runs {
        delivered(
            &connect,
            folder.path(),
            &format!("vm{run}"),
            &migrations[run % 2],
        );
        if (run + 1) % 50 == 0 {
            println!("after {}: {:?}", run + 1, Counts::of(&far));
        }
    }
    let one_by_one = before.back_to(&far);
    println!("after {runs} in a row: {one_by_one:?}");
    for round in 0..runs / 20 {
        thread::scope(|scope| {
            for guest in 0..10 {
                let (connect, folder, migrations) = (&connect, folder.path(), &migrations);
                let name = format!("r{round}-{guest}");
                scope.spawn(move || delivered(connect, folder, &name, &migrations[guest % 2]));
            }
        });
        if round % 5 == 0 {
            println!("after round {}: {:?}", round + 1, before.back_to(&far));
        }
    }
    let after = before.back_to(&far);
    println!("after {} at once, ten by ten: {after:?}", runs / 20 * 10);
    assert!(
        one_by_one.memory < before.memory + (4 << 10),
        "{before:?} {one_by_one:?}"
    );
    assert!(
        after.memory < before.memory + (32 << 10),
        "{before:?} {after:?}"
    );
}

/// Peers that write long frames and withhold the last byte of each: of all their channels together
/// a relay holds a bounded part, and the guest of an ordinary peer passes meanwhile.
#[test]
fn unfinished_long_frames_take_bounded_memory() {
    const CHANNELS: u8 = 255;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("more descriptors");
    let folder = tempfile::tempdir().expect("a folder");
    let sockets = format!("unix:{}", folder.path().join("{name}").display());
    let mut far = relay("trunk+tcp:127.0.0.1:0", &sockets, &[]);
    let port = trunk_of(&mut far);
    let before = Counts::of(&far);
    let call = |number: u8, connection: Connection| {
        let preface = Preface {
            migration: [number; 16],
            name: Name::new(&format!("hostile{number}")).expect("a name"),
            ..asking(connection)
        };
        let stream = dial(&port);
        write(&stream, &preface.encode().expect("a preface"));
        let answer = answer(&stream);
        assert!(matches!(answer, Answer::Accepted(_)), "{answer:?}");
        stream
    };
    let body = vec![0; MAX_BODY_LEN];
    let mut connections = Vec::new();
    let mut destinations = Vec::new();
    for number in 1..=2 {
        let address = Address::Unix(folder.path().join(format!("hostile{number}")));
        let limits = support::peers::Limits::default();
        destinations.push(Destination::at(&address, CHANNELS.into(), limits));
        let main = call(number, main(false));
        let mut frames = FrameWriter::new(Digest::Xxh3, Compression::None).expect("frames");
        let mut set_up = Vec::new();
        frames
            .append(&both(short)[1].main, &mut set_up)
            .expect("a frame");
        write(&main, &set_up);
        connections.push(main);
        for id in 0..CHANNELS {
            connections.push(call(number, Connection::Channel(Hello::new([7; 16], id))));
        }
    }
    let is_channel = |index: usize| !index.is_multiple_of(usize::from(CHANNELS) + 1);
    thread::scope(|scope| {
        for (index, stream) in connections.iter().enumerate() {
            let body = &body;
            let mut frames = FrameWriter::new(Digest::Xxh3, Compression::None).expect("frames");
            let header = frames.data(&[body]).expect("a frame");
            if is_channel(index) {
                scope.spawn(move || {
                    write(stream, &header);
                    write(stream, &body[1..]);
                });
            }
        }
    });
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut most = before;
    while Instant::now() < deadline {
        most.memory = most.memory.max(Counts::of(&far).memory);
        thread::sleep(Duration::from_millis(20));
    }
    println!("two times {CHANNELS} unfinished frames: {before:?}, at most {most:?}");
    // The total for long frames, and for each connection what it may have and its thread.
    let allowed = (256 << 10) + 2 * u64::from(CHANNELS) * 192;
    assert!(most.memory < before.memory + allowed, "{before:?} {most:?}");
    delivered(
        &format!("trunk+{port}"),
        folder.path(),
        "vm",
        &both(short)[1],
    );
    drop(connections);
    before.back_to(&far);
}
