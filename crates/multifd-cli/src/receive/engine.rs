//! A guest of `multifd send` is received.

use std::fmt;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use multifd_codec::is_zero;
use multifd_engine::destination::{DestinationSettings, Offer, Received, receive};
use multifd_engine::failure::{Cause, Failure};
use multifd_engine::memory::{GuestMemory, MappedMemory, Mapping, MemoryBlock};
use multifd_engine::{VmError, VmHandle};
use multifd_relay::image::{Folder, Images};
use multifd_transport::Cancel;
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::incoming::Acceptor;
use multifd_wire::main_stream::Block as ImageBlock;
use serde::{Deserialize, Serialize};

use crate::args::ReceiveArgs;
use crate::process::cpu_seconds;
use crate::say::{self, Arrived, Progress};

/// Why no guest was received.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// A connection that was none of an engine's, or broke off before anything was agreed on.
    #[error("passed over an engine's connection")]
    Opening(#[source] Failure),
    /// The migration failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The summary cannot be made.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Takes the guest that has come.
pub(super) fn run(
    args: &ReceiveArgs,
    acceptor: &mut Acceptor,
    folder: Option<&Folder>,
    cancel: &Cancel,
) -> Result<(), Fault> {
    let mut settings = DestinationSettings::default();
    settings.codec.accel = args.accel;
    let kept = OnceLock::new();
    let make = |offer: &Offer| {
        let memory = Shared::make(offer)?;
        let images = folder.map(|folder| create(folder, offer)).transpose()?;
        kept.get_or_init(|| (memory.clone(), images));
        Ok(memory)
    };
    let mut progress = Progress::new();
    let outcome = receive(
        acceptor,
        make,
        &mut Keeper(&kept),
        &settings,
        cancel,
        &mut |arrived| progress.show(Arrived::from(arrived)),
    );
    drop(progress);
    let received =
        outcome.map_err(
            |failure| match kept.get().is_none() && is_broken_off(&failure) {
                true => Fault::Opening(failure),
                false => Fault::Failed(failure),
            },
        )?;
    let images = kept.get().and_then(|(_, images)| images.as_ref());
    say::report(&Summary::new(&received, images)?, args.json);
    Ok(())
}

/// Whether a failure says nothing about a guest: a peer connected, and sent too little or something
/// else.
fn is_broken_off(failure: &Failure) -> bool {
    match &failure.cause {
        Cause::Transport(
            TransportCause::Io(_) | TransportCause::Wire(_) | TransportCause::Setup(_),
        )
        | Cause::Control(_) => true,
        Cause::Engine(error) => error.is_closed(),
        _ => false,
    }
}

fn create(folder: &Folder, offer: &Offer) -> Result<Images, VmError> {
    let blocks = offer.blocks.iter().map(|block| ImageBlock {
        name: block.name.clone(),
        used_length: block.len_bytes,
    });
    Ok(folder.create(&blocks.collect::<Vec<_>>())?)
}

/// Memory that is also looked at beside the engine.
#[derive(Clone)]
struct Shared(Arc<MappedMemory>);

impl Shared {
    fn make(offer: &Offer) -> Result<Self, VmError> {
        let block = |block: &multifd_engine::destination::Block| {
            let bytes = usize::try_from(block.len_bytes)?;
            let mapping = Mapping::memfd("multifd-received", bytes)?;
            Ok((block.name.clone(), mapping))
        };
        let blocks: Result<_, VmError> = offer.blocks.iter().map(block).collect();
        Ok(Self(Arc::new(MappedMemory::new(blocks?))))
    }
}

impl GuestMemory for Shared {
    fn blocks(&self) -> Vec<MemoryBlock<'_>> {
        self.0.blocks()
    }
}

/// Stands for the VM. All memory is on the disk before the source hears that all has arrived: if it
/// cannot be kept, the source still has its guest. It gets its names once the guest has been given.
struct Keeper<'a>(&'a OnceLock<(Shared, Option<Images>)>);

impl VmHandle for Keeper<'_> {
    fn pause(&mut self) -> Result<(), VmError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmError> {
        match self.0.get() {
            Some((_, Some(images))) => Ok(images.publish()?),
            _ => Ok(()),
        }
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        Ok(Vec::new())
    }

    fn load_device_state(&mut self, _: &[u8]) -> Result<(), VmError> {
        let Some((memory, Some(images))) = self.0.get() else {
            return Ok(());
        };
        let mut piece = vec![0; PIECE_BYTES];
        for (name, mapping) in memory.0.mappings() {
            let image = images.of(name)?;
            let mut offset = 0;
            while offset < image.bytes() {
                let left = usize::try_from(image.bytes() - offset).unwrap_or(usize::MAX);
                let piece = piece.get_mut(..left.min(PIECE_BYTES)).unwrap_or_default();
                mapping.file().read_exact_at(piece, offset)?;
                if !is_zero(piece) {
                    image.write(&[offset], piece.len(), piece)?;
                }
                offset += piece.len() as u64;
            }
        }
        Ok(images.sync()?)
    }
}

/// The summary of a complete guest.
#[derive(Debug, Serialize, Deserialize)]
pub struct Summary {
    blocks: Vec<Block>,
    channels: usize,
    pages: u64,
    zero_pages: u64,
    bytes_in: u64,
    seconds: f64,
    /// The digest of its memory, if the source wanted one; it was the same there.
    pub digest: Option<String>,
    /// Processor seconds of this process.
    pub cpu_seconds: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Block {
    name: String,
    bytes: u64,
    file: Option<say::FilePath>,
}

impl Summary {
    fn new(received: &Received<Shared>, images: Option<&Images>) -> std::io::Result<Self> {
        let block = |block: &multifd_engine::destination::Block| Block {
            name: block.name.to_string(),
            bytes: block.len_bytes,
            file: images
                .and_then(|images| images.of(&block.name).ok())
                .map(|image| image.path().to_owned().into()),
        };
        let hex = |digest: [u8; 32]| digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            blocks: received.offer.blocks.iter().map(block).collect(),
            channels: received.channels,
            pages: received.arrived.normal,
            zero_pages: received.arrived.duplicate,
            bytes_in: received.arrived.bytes,
            seconds: say::seconds(received.duration),
            digest: received.digest.map(hex),
            cpu_seconds: cpu_seconds()?,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for block in &self.blocks {
            write!(
                f,
                "block {}, bytes {}",
                say::printable(&block.name),
                block.bytes
            )?;
            match &block.file {
                Some(file) => writeln!(f, ", file {file}")?,
                None => writeln!(f)?,
            }
        }
        write!(
            f,
            "channels {}, pages {}, zero pages {}, bytes in {}, seconds {:.3}, cpu {:.2} s",
            self.channels,
            self.pages,
            self.zero_pages,
            self.bytes_in,
            self.seconds,
            self.cpu_seconds
        )?;
        match &self.digest {
            Some(digest) => write!(f, ", digest {digest}, as at the source"),
            None => Ok(()),
        }
    }
}

const PIECE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_wire::BlockName;
    use std::path::Path;

    fn files(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A source that takes its guest back after everything has come leaves no image.
    #[test]
    fn images_have_their_names_once_the_guest_has_been_given() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::prepare(dir.path()).unwrap();
        let mapping = Mapping::memfd("ram", 8192).unwrap();
        mapping.range().write(4096, &[7; 4096]).unwrap();
        let name = BlockName::new(b"ram").unwrap();
        let block = ImageBlock {
            name: name.clone(),
            used_length: 8192,
        };
        for is_given in [false, true] {
            let memory = Mapping::shared(mapping.file().try_clone().unwrap().into()).unwrap();
            let memory = MappedMemory::new(vec![(name.clone(), memory)]);
            let images = folder.create(std::slice::from_ref(&block)).unwrap();
            let kept = OnceLock::from((Shared(Arc::new(memory)), Some(images)));
            let mut keeper = Keeper(&kept);
            keeper.load_device_state(&[]).unwrap();
            assert_eq!(files(dir.path()), ["ram.ram.partial"]);
            if is_given {
                keeper.resume().unwrap();
            }
            drop(kept);
            let left: &[&str] = if is_given { &["ram.ram"] } else { &[] };
            assert_eq!(files(dir.path()), left);
        }
        let image = std::fs::read(dir.path().join("ram.ram")).unwrap();
        assert!(image == [[0; 4096], [7; 4096]].concat());
    }
}
