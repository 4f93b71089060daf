//! `cargo xtask capture`: captures of migrations between real QEMUs, into `testdata/captures`.

use std::fs;
use std::path::Path;

use qemu_lab::{
    Capture, CaptureConfig, Guest, LabError, Parameters, QemuBinary, SETUP_COMMAND, Version,
};
use sha2::{Digest, Sha256};

use crate::{Result, workspace};

/// What somebody else's firmware would leave in the guest's memory.
const FOREIGN: [&[u8]; 3] = [b"SeaBIOS", b"iPXE", b"BOCHS"];

/// On a busy machine a running guest may have too little processor time to keep its migration
/// going.
const ATTEMPTS: usize = 10;

/// The UUID of the captures that have one; its bytes tell their order.
const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";

#[derive(clap::Args)]
pub struct Arguments {
    /// Captures to make anew, as `none2-10.0`; all of them when none is named
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// What a capture's name says before the release.
struct Kind {
    name: &'static str,
    channels: u8,
    compression: &'static str,
    live: bool,
    return_path: bool,
    uuid: bool,
    zero_page_detection: Option<&'static str>,
}

const PLAIN: Kind = Kind {
    name: "none2",
    channels: 2,
    compression: "none",
    live: false,
    return_path: false,
    uuid: false,
    zero_page_detection: None,
};

const KINDS: [Kind; 8] = [
    PLAIN,
    Kind {
        name: "none4",
        channels: 4,
        ..PLAIN
    },
    Kind {
        name: "zlib2",
        compression: "zlib",
        ..PLAIN
    },
    Kind {
        name: "zstd2",
        compression: "zstd",
        ..PLAIN
    },
    Kind {
        name: "zlib2-live",
        compression: "zlib",
        live: true,
        ..PLAIN
    },
    Kind {
        name: "none2-rp",
        return_path: true,
        ..PLAIN
    },
    Kind {
        name: "none2-uuid",
        uuid: true,
        ..PLAIN
    },
    Kind {
        name: "none2-zpd-legacy",
        zero_page_detection: Some("legacy"),
        ..PLAIN
    },
];

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut unknown = arguments.names.clone();
    for version in Version::ALL {
        let (major, minor) = version.number();
        for kind in &KINDS {
            let name = format!("{}-{major}.{minor}", kind.name);
            // The setting came with 9.0.
            if kind.zero_page_detection.is_some() && (major, minor) < (9, 0) {
                continue;
            }
            if arguments.names.is_empty() || arguments.names.contains(&name) {
                make(&name, version, kind).map_err(|error| format!("{name}: {error}"))?;
                unknown.retain(|asked| *asked != name);
            }
        }
    }
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(format!("no such capture: {}", unknown.join(", ")).into())
    }
}

fn make(name: &str, version: Version, kind: &Kind) -> Result<()> {
    let (major, minor) = version.number();
    let binary = QemuBinary::find(version)
        .ok_or_else(|| format!("needs QEMU {major}.{minor}; to have it: {SETUP_COMMAND}"))?;
    // Little enough that all captures together can lie in the repository.
    let mut guest = Guest {
        ram_mib: 2,
        counters: 6,
        blinkers: 4,
        still: 3,
        ..Guest::default()
    };
    if kind.live {
        guest.pages_per_tick = 0;
        guest.passes_per_report = 100_000;
    }
    let parameters = Parameters {
        return_path: kind.return_path,
        zero_page_detection: kind.zero_page_detection.map(str::to_owned),
        ..Parameters::multifd(kind.channels, kind.compression)
    };
    let config = CaptureConfig {
        binary,
        machine: format!("pc-q35-{major}.{minor}"),
        guest,
        uuid: kind.uuid.then(|| UUID.to_owned()),
        parameters,
        live: kind.live,
    };
    let mut attempts = ATTEMPTS;
    let capture = loop {
        match config.capture() {
            Err(LabError::Late { .. }) if attempts > 1 => attempts -= 1,
            outcome => break outcome?,
        }
    };
    let bytes = write(&workspace().join("testdata/captures").join(name), &capture)?;
    println!(
        "{name:<22} {bytes:>7} bytes, {} on the wire",
        capture.meta["query_migrate_source"]["ram"]["transferred"]
    );
    Ok(())
}

fn write(folder: &Path, capture: &Capture) -> Result<usize> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let mut bytes = 0;
    let mut write = |name: &str, content: &[u8]| {
        bytes += content.len();
        fs::write(folder.join(name), content)
    };
    for (name, connection) in &capture.connections {
        for foreign in FOREIGN {
            if connection
                .forward
                .windows(foreign.len())
                .any(|window| window == foreign)
            {
                return Err(format!("{name} carries {}", String::from_utf8_lossy(foreign)).into());
            }
        }
        write(&format!("{name}.fwd"), &connection.forward)?;
        if !connection.back.is_empty() {
            write(&format!("{name}.back"), &connection.back)?;
        }
    }
    write("meta.json", format!("{:#}\n", capture.meta).as_bytes())?;
    // As sha256sum writes it, for the image that a receiver makes of the block.
    let line = format!("{:x}  pc.ram.ram\n", Sha256::digest(&capture.ram));
    write("ram.sha256", line.as_bytes())?;
    Ok(bytes)
}
