//! Captured migrations of real QEMUs.
//!
//! A capture is a folder with `main.fwd` and `mfdN.fwd`: what the source wrote on each connection. Where it has a
//! `ram.sha256`, that says in the format of sha256sum what the images of its blocks must be. Captures are looked for in
//! `testdata/captures` of the workspace and in the folder which the environment variable `MULTIFD_CAPTURES` names.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::{env, fs};

use super::Migration;

pub struct Capture {
    pub folder: PathBuf,
    pub migration: Migration,
}

impl Capture {
    fn read(folder: &Path) -> Option<Self> {
        let main = fs::read(folder.join("main.fwd")).ok()?;
        let channels = (0..=255).map_while(|id| fs::read(folder.join(format!("mfd{id}.fwd"))).ok());
        let migration = Migration {
            channels: channels.collect(),
            closed: None,
            return_path: folder.join("main.back").exists(),
            main,
        };
        Some(Self {
            folder: folder.to_owned(),
            migration,
        })
    }

    pub fn name(&self) -> &str {
        self.folder
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name")
    }

    pub fn files(&self) -> Vec<PathBuf> {
        let main = self.folder.join("main.fwd");
        let channels = 0..self.migration.channels.len();
        let channels = channels.map(|id| self.folder.join(format!("mfd{id}.fwd")));
        std::iter::once(main).chain(channels).collect()
    }

    /// What the images must be: their names, and how their hashes begin.
    pub fn images(&self) -> Vec<(String, String)> {
        let listed = fs::read_to_string(self.folder.join("ram.sha256")).unwrap_or_default();
        let listed: Vec<_> = listed
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(hash, name)| (name.to_owned(), hash.to_owned()))
            .collect();
        // The reference captures of a paused guest all show the same memory.
        let reference = env::var_os(VARIABLE).is_some_and(|root| self.folder.starts_with(root));
        match self.name() {
            _ if !listed.is_empty() => listed,
            name if !reference || name.contains("live") => Vec::new(),
            name if name.starts_with("sparc64") => vec![("sun4u.ram.ram".into(), PAUSED.into())],
            _ => vec![("pc.ram.ram".into(), PAUSED.into())],
        }
    }
}

/// All captures there are. Says so when there are none: then nothing is tested.
pub fn all() -> Vec<Capture> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/captures");
    let roots = [Some(workspace), env::var_os(VARIABLE).map(PathBuf::from)];
    let mut folders: Vec<_> = roots
        .into_iter()
        .flatten()
        .filter_map(|root| fs::read_dir(root).ok())
        .flatten()
        .map(|entry| entry.expect("an entry").path())
        .collect();
    folders.sort();
    let captures: Vec<_> = folders
        .iter()
        .filter_map(|folder| Capture::read(folder))
        .collect();
    if captures.is_empty() {
        static SAID: Once = Once::new();
        SAID.call_once(|| eprintln!("no captures: neither in testdata/captures nor in {VARIABLE}"));
    }
    captures
}

const VARIABLE: &str = "MULTIFD_CAPTURES";

/// How the SHA-256 of 16 MiB of RAM with the pattern of the reference captures begins.
const PAUSED: &str = "265be71ab323666d";
