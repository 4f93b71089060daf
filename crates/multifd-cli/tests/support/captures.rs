//! Captured migrations of real QEMUs, from `testdata`.
//!
//! Recordings are files `recordings/NAME.mfd`. Captures are folders `captures/NAME` with `main.fwd`
//! and `mfdN.fwd`, what the source wrote on each connection, and `main.back` where there was a
//! return path. Beside each stand, in the format of sha256sum, the hashes of the images of RAM
//! blocks.

use std::fs;
use std::path::{Path, PathBuf};

use multifd_relay::inspect::Inspection;
use multifd_relay::recording::{Chunk, Reader, Role};
use serde_json::Value;

use super::Migration;

pub struct Capture {
    /// The recording, or the folder.
    pub path: PathBuf,
    pub migration: Migration,
    /// What the images must be: their names and their hashes.
    pub images: Vec<(String, String)>,
}

impl Capture {
    fn of_folder(folder: &Path) -> Self {
        let read = |file: &str| fs::read(folder.join(file)).expect("a part of a capture");
        let meta: Value = serde_json::from_slice(&read("meta.json")).expect("JSON");
        let channels = &meta["migrate_set_parameters"]["multifd-channels"];
        let channels = 0..channels.as_u64().expect("a number");
        Self {
            path: folder.to_owned(),
            migration: Migration {
                channels: channels.map(|id| read(&format!("mfd{id}.fwd"))).collect(),
                closed: None,
                return_path: folder.join("main.back").exists(),
                main: read("main.fwd"),
            },
            images: images(&folder.join("ram.sha256")),
        }
    }

    fn of_recording(file: &Path) -> Self {
        let report = Inspection::open(file).expect("a recording").finish();
        assert!(report.is_sound(), "{}", file.display());
        let mut streams: Vec<(Role, Vec<u8>)> = Vec::new();
        let mut reader = Reader::new(fs::File::open(file).expect("a file")).expect("a recording");
        while let Some(chunk) = reader.next_chunk().expect("a whole recording") {
            match chunk {
                Chunk::Open { role, .. } => streams.push((role, Vec::new())),
                Chunk::Data { stream, bytes } => {
                    streams[usize::from(stream)].1.extend_from_slice(bytes);
                }
                Chunk::Eof { .. } => {}
            }
        }
        let of = |wanted| {
            let streams = streams.iter().filter(move |(role, _)| *role == wanted);
            streams.map(|(_, bytes)| bytes.clone())
        };
        Self {
            path: file.to_owned(),
            migration: Migration {
                main: of(Role::Main).next().expect("a main channel"),
                channels: of(Role::Channel).collect(),
                return_path: report.main().is_some_and(|main| main.return_path),
                closed: None,
            },
            images: images(&file.with_extension("sha256")),
        }
    }

    pub fn name(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name")
    }

    /// The channels, where each is a file of its own.
    pub fn files(&self) -> Vec<PathBuf> {
        let main = self.path.join("main.fwd");
        let channels = 0..self.migration.channels.len();
        let channels = channels.map(|id| self.path.join(format!("mfd{id}.fwd")));
        std::iter::once(main).chain(channels).collect()
    }
}

/// All captures there are, of which there are at least one of each kind.
pub fn all() -> Vec<Capture> {
    let recordings = recordings();
    let folders = folders();
    recordings.into_iter().chain(folders).collect()
}

/// Those that are one file.
pub fn recordings() -> Vec<Capture> {
    let files = entries("recordings").into_iter();
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "mfd"));
    let recordings: Vec<_> = files.map(|path| Capture::of_recording(&path)).collect();
    assert!(!recordings.is_empty(), "no recordings");
    recordings
}

/// Those with a file for each connection.
pub fn folders() -> Vec<Capture> {
    let folders = entries("captures");
    assert!(folders.len() >= 23, "only {} captures", folders.len());
    folders
        .iter()
        .map(|path| Capture::of_folder(path))
        .collect()
}

fn images(hashes: &Path) -> Vec<(String, String)> {
    let hashes = fs::read_to_string(hashes).expect("hashes");
    let images: Vec<_> = hashes
        .lines()
        .map(|line| {
            let (hash, name) = line.split_once("  ").expect("a hash and a name");
            (name.to_owned(), hash.to_owned())
        })
        .collect();
    assert!(!images.is_empty());
    images
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    let entries = fs::read_dir(testdata.join(folder)).expect("a folder of testdata");
    let mut entries: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    entries
}
