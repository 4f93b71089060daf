//! A real redis-server under load, and its memory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use qemu_lab::{Part, Root};
use tempfile::TempDir;
use testkit::pages::Random;

use crate::Result;
use crate::sending::Image;

/// Dropping it kills the process.
pub struct Redis {
    child: Child,
    socket: PathBuf,
    random: Random,
    _folder: TempDir,
}

const KEYS: usize = 60_000;

impl Redis {
    /// A server with records, each a hash of ten fields. None if it has not been set up.
    pub fn start() -> Result<Option<Self>> {
        let Some(root) = Root::of(Part::Redis) else {
            return Ok(None);
        };
        let folder = TempDir::new()?;
        let socket = folder.path().join("redis.sock");
        let child = root
            .command(&root.dir().join("usr/bin/redis-server"))
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .spawn()?;
        let mut redis = Self {
            child,
            socket,
            random: Random::new(1),
            _folder: folder,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(&redis.socket).is_err() {
            if Instant::now() > deadline {
                return Err("the server does not listen".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        let mut client = Client::new(&redis.socket)?;
        for first in (0..KEYS).step_by(100) {
            for key in first..first + 100 {
                let mut words = vec!["HSET".to_owned(), format!("user{key:012}")];
                for field in 0..10 {
                    words.extend([format!("field{field}"), redis.value()]);
                }
                client.put(&words);
            }
            client.turn()?;
        }
        Ok(Some(redis))
    }

    /// The memory after each round of load.
    pub fn rounds(&mut self, rounds: usize, pause: Duration) -> Result<Vec<Image>> {
        let mut client = Client::new(&self.socket)?;
        // The same addresses in every image.
        let ranges = self.ranges()?;
        let mut images = vec![self.image(&ranges)?];
        for _ in 0..rounds {
            let end = Instant::now() + pause;
            while Instant::now() < end {
                for _ in 0..20 {
                    let key = self.random.below(KEYS) * self.random.below(KEYS) / KEYS;
                    let (key, field) = (format!("user{key:012}"), self.random.below(10));
                    let field = format!("field{field}");
                    match self.random.below(20) {
                        0 => {
                            let value = self.value();
                            client.put(&["HSET".to_owned(), key, field, value]);
                        }
                        1 => client.put(&["INCR".to_owned(), format!("count{field}")]),
                        _ => client.put(&["HGET".to_owned(), key, field]),
                    }
                }
                client.turn()?;
            }
            images.push(self.image(&ranges)?);
        }
        Ok(images)
    }

    fn value(&mut self) -> String {
        let random = &mut self.random;
        (0..100)
            .map(|_| char::from(b' ' + random.below(95) as u8))
            .collect()
    }

    /// The private writable memory without a file.
    fn ranges(&self) -> Result<Vec<(u64, usize)>> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id()))?;
        let mut ranges = Vec::new();
        for line in maps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (&[addresses, rights, ..], name) = (&words[..], words.get(5)) else {
                continue;
            };
            if rights != "rw-p" || name.is_some_and(|name| *name != "[heap]") {
                continue;
            }
            let (start, end) = addresses.split_once('-').ok_or("a line of maps")?;
            let (start, end) = (
                u64::from_str_radix(start, 16)?,
                u64::from_str_radix(end, 16)?,
            );
            ranges.push((start, usize::try_from(end - start)?));
        }
        Ok(ranges)
    }

    fn image(&self, ranges: &[(u64, usize)]) -> Result<Image> {
        let memory = File::open(format!("/proc/{}/mem", self.child.id()))?;
        let mut image = vec![0; ranges.iter().map(|(_, len)| len).sum()];
        let mut rest = &mut image[..];
        for &(start, len) in ranges {
            let (here, behind) = rest.split_at_mut(len);
            memory.read_exact_at(here, start)?;
            rest = behind;
        }
        Ok(image)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that sends several commands before it reads the answers.
struct Client {
    stream: BufReader<UnixStream>,
    commands: Vec<u8>,
    answers: usize,
}

impl Client {
    fn new(socket: &PathBuf) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self {
            stream: BufReader::new(stream),
            commands: Vec::new(),
            answers: 0,
        })
    }

    fn put(&mut self, words: &[String]) {
        self.answers += 1;
        self.commands
            .extend(format!("*{}\r\n", words.len()).bytes());
        for word in words {
            self.commands
                .extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
        }
    }

    fn turn(&mut self) -> Result<()> {
        self.stream.get_mut().write_all(&self.commands)?;
        self.commands.clear();
        let mut line = String::new();
        for _ in 0..std::mem::take(&mut self.answers) {
            line.clear();
            self.stream.read_line(&mut line)?;
            if line.starts_with('$') && !line.starts_with("$-1") {
                // A value has no line's end in it.
                self.stream.read_line(&mut line)?;
            }
        }
        Ok(())
    }
}
