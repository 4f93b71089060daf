//! Captured migrations of real QEMUs.
//!
//! Those in the repository are recordings: `testdata/recordings/NAME.mfd` with `NAME.sha256` beside it, which says in the
//! format of sha256sum what the images of RAM blocks must be. The folder which the environment variable
//! `MULTIFD_CAPTURES` names may hold more: folders with `main.fwd` and `mfdN.fwd`, what the source wrote on each
//! connection, and `main.back` where there was a return path.

use std::path::{Path, PathBuf};
use std::{env, fs};

use multifd_transport::inspect::Inspection;
use multifd_transport::recording::{Chunk, Reader, Role};

use super::Migration;

pub struct Capture {
    /// The recording, or the folder.
    pub path: PathBuf,
    pub migration: Migration,
    /// What the images must be: their names, and how their hashes begin.
    pub images: Vec<(String, String)>,
}

impl Capture {
    fn of_folder(folder: &Path) -> Option<Self> {
        let main = fs::read(folder.join("main.fwd")).ok()?;
        let channels = (0..=255).map_while(|id| fs::read(folder.join(format!("mfd{id}.fwd"))).ok());
        let migration = Migration {
            channels: channels.collect(),
            closed: None,
            return_path: folder.join("main.back").exists(),
            main,
        };
        // All guests that stood still show the same memory.
        let name = folder.file_name()?.to_str()?;
        let image = match name {
            _ if name.contains("live") => None,
            _ if name.starts_with("sparc64") => Some("sun4u.ram.ram"),
            _ => Some("pc.ram.ram"),
        };
        let images = image.map(|image| (image.to_owned(), PAUSED.to_owned()));
        Some(Self {
            path: folder.to_owned(),
            migration,
            images: images.into_iter().collect(),
        })
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
        let hashes = fs::read_to_string(file.with_extension("sha256")).expect("hashes");
        let images = hashes.lines().filter_map(|line| line.split_once("  "));
        Self {
            path: file.to_owned(),
            migration: Migration {
                main: of(Role::Main).next().expect("a main channel"),
                channels: of(Role::Channel).collect(),
                return_path: report.main().is_some_and(|main| main.return_path),
                closed: None,
            },
            images: images
                .map(|(hash, name)| (name.to_owned(), hash.to_owned()))
                .collect(),
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

/// All captures there are.
pub fn all() -> Vec<Capture> {
    let recordings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/recordings");
    let recordings = entries(&recordings)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "mfd"))
        .map(|path| Capture::of_recording(&path));
    let folders = env::var_os("MULTIFD_CAPTURES").map(|root| entries(Path::new(&root)));
    let folders = folders.unwrap_or_default();
    let folders = folders
        .iter()
        .filter_map(|folder| Capture::of_folder(folder));
    recordings.chain(folders).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut entries: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    entries
}

/// How the SHA-256 of 16 MiB of RAM with the pattern of the captures in `MULTIFD_CAPTURES` begins.
const PAUSED: &str = "265be71ab323666d";
