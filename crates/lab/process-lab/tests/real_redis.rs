//! Moves a real Redis while clients keep it busy.
#![cfg(target_arch = "x86_64")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::Accel;
use multifd_engine::destination::{self, DestinationSettings, Offer};
use multifd_engine::memory::{MappedMemory, Mapping};
use multifd_engine::source::{self, Guest};
use multifd_engine::{Parameters, VmError, VmHandle};
use multifd_transport::incoming::Acceptor;
use multifd_transport::{Address, Cancel};
use multifd_wire::Method;
use process_lab::Captive;
use qemu_lab::{Part, Root, require};

const RECORDS: u64 = 12_000;
const FIELDS: u64 = 10;

/// A server from Debian's package, without persistence. Dropping it kills the process.
struct Redis {
    child: Child,
    socket: PathBuf,
}

impl Redis {
    fn start(folder: &Path) -> Option<Redis> {
        let root = require(Part::Redis).then(|| Root::of(Part::Redis))??;
        let socket = folder.join("redis.sock");
        let child = root
            .command(&root.dir().join("usr/bin/redis-server"))
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .current_dir(folder)
            .stdout(Stdio::null())
            .spawn()
            .expect("a server");
        let redis = Redis { child, socket };
        let deadline = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(&redis.socket).is_err() {
            assert!(Instant::now() < deadline, "it does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Some(redis)
    }

    fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).expect("a server");
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket");
        Client(BufReader::new(stream))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    /// Sends a command in Redis's protocol and skips its answer.
    fn ask(&mut self, words: &[&str]) -> io::Result<()> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.get_mut().write_all(command.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<()> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let count = || line[1..].trim().parse::<i64>().map_err(io::Error::other);
        match line.as_bytes().first() {
            Some(b'+' | b':') => Ok(()),
            Some(b'$') => {
                let len = usize::try_from(count()?).map_err(io::Error::other)?;
                self.0.read_exact(&mut vec![0; len + 2])
            }
            Some(b'*') => (0..count()?).try_for_each(|_| self.answer()),
            _ => Err(io::Error::other(line)),
        }
    }
}

/// A hundred printable bytes, different for each number.
fn value(number: u64) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state >> 33) as u8 % 94)
    };
    std::iter::repeat_with(next).take(100).collect()
}

fn write(client: &mut Client, record: u64, number: u64) -> io::Result<()> {
    let key = format!("user{record:019}");
    let field = format!("field{}", number % FIELDS);
    client.ask(&["HSET", &key, &field, &value(number)])
}

/// Nine reads, then a write; until `end`, or until the server stops answering.
fn keep_busy(mut client: Client, seed: u64, end: &AtomicBool, done: &AtomicU64) {
    for number in (seed << 32).. {
        let record = number.wrapping_mul(0x2545_f491_4f6c_dd1d) % RECORDS;
        let outcome = match number % 10 {
            0 => write(&mut client, record, number / 10),
            _ => client.ask(&["HGETALL", &format!("user{record:019}")]),
        };
        if outcome.is_err() || end.load(Ordering::Relaxed) {
            return;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Accepts the guest, which never runs there.
struct Nobody;

impl VmHandle for Nobody {
    fn pause(&mut self) -> Result<(), VmError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmError> {
        Ok(())
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        Ok(Vec::new())
    }

    fn load_device_state(&mut self, _: &[u8]) -> Result<(), VmError> {
        Ok(())
    }
}

fn empty(offer: &Offer) -> Result<MappedMemory, VmError> {
    let block = |block: &multifd_engine::destination::Block| {
        let mapping = Mapping::memfd("received", usize::try_from(block.len_bytes)?)?;
        Ok((block.name.clone(), mapping))
    };
    let blocks: Result<_, VmError> = offer.blocks.iter().map(block).collect();
    Ok(MappedMemory::new(blocks?))
}

#[test]
fn its_copy_holds_exactly_what_the_frozen_original_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(redis) = Redis::start(folder.path()) else {
        return;
    };
    let mut client = redis.client();
    for number in 0..RECORDS * FIELDS {
        write(&mut client, number / FIELDS, number).expect("a server");
    }
    let (end, done) = (AtomicBool::new(false), AtomicU64::new(0));
    // The server allocates memory for its clients before its memory is captured.
    let clients = || (1..=3).map(|seed| (redis.client(), seed));
    let warmed_up = AtomicBool::new(false);
    thread::scope(|scope| {
        for (client, seed) in clients() {
            let (end, done) = (&warmed_up, &done);
            scope.spawn(move || keep_busy(client, seed, end, done));
        }
        thread::sleep(Duration::from_millis(500));
        warmed_up.store(true, Ordering::Relaxed);
    });
    let clients: Vec<_> = clients().collect();

    let captive = Captive::take(redis.child.id()).expect("a process to be traced");
    client.ask(&["PING"]).expect("a server that goes on");
    let mut acceptor = Acceptor::bind(&Address::Unix(folder.path().join("m"))).expect("a socket");
    let address = acceptor.address().clone();
    let before = done.load(Ordering::Relaxed);
    let (sent, received) = thread::scope(|scope| {
        for (client, seed) in clients {
            let (end, done) = (&end, &done);
            scope.spawn(move || keep_busy(client, seed, end, done));
        }
        let receiving = scope.spawn(|| {
            let settings = DestinationSettings::default();
            let cancel = Cancel::new();
            destination::receive(
                &mut acceptor,
                empty,
                &mut Nobody,
                &settings,
                &cancel,
                &mut |_| {},
            )
        });
        let mut parameters = Parameters::default();
        parameters.multifd_compression = Method::Zlib;
        parameters.codec.accel = Accel::Software;
        // Slow enough for several rounds.
        parameters.max_bandwidth = std::num::NonZeroU64::new(30_000_000);
        parameters.digest = true;
        let mut log = captive.log().expect("a log");
        let guest = Guest {
            uuid: [0; 16],
            memory: &captive,
            dirty: &mut log,
            vm: &mut captive.freezer(),
        };
        let sent = source::send(&address, guest, &parameters, &Cancel::new(), &mut |_| {});
        end.store(true, Ordering::Relaxed);
        (sent, receiving.join().expect("a thread"))
    });
    let sent = sent.unwrap_or_else(|error| panic!("{error:?}"));
    let received = received.expect("a guest");
    let served = done.load(Ordering::Relaxed) - before;
    println!("{sent:?}, {served} requests meanwhile");
    assert!(
        sent.rounds > 1 && served > 1000,
        "{sent:?}, {served} requests"
    );
    // More was sent than the memory's size: pages were written meanwhile, and sent again.
    let mut bytes = 0;
    for block in captive.contents() {
        let (name, original) = block.expect("a frozen process");
        let mut mappings = received.memory.mappings().iter();
        let (_, copy) = mappings
            .find(|(other, _)| *other == name)
            .expect("the same blocks");
        let mut copied = vec![0; original.len()];
        std::os::unix::fs::FileExt::read_exact_at(copy.file(), &mut copied, 0).expect("a memfd");
        assert!(copied == original, "block {name}");
        bytes += original.len() as u64;
    }
    assert!(bytes > RECORDS * FIELDS * 100, "{bytes}");
    assert!((sent.normal + sent.duplicate) * 4096 > bytes, "{sent:?}");
}
