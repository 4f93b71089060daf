//! A guest of `multifd send` is received.

use std::fmt;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use multifd_codec::is_zero;
use multifd_transport::destination::{DestinationSettings, Offer, Received, receive};
use multifd_transport::image::{Folder, Images};
use multifd_transport::incoming::Acceptor;
use multifd_transport::memory::{GuestMemory, MappedMemory, Mapping, MemoryBlock};
use multifd_transport::{Cancel, VmError, VmHandle};
use multifd_wire::main_stream::Block as ImageBlock;
use serde::{Deserialize, Serialize};

use crate::args::ReceiveArgs;
use crate::say::{self, Arrived, Progress};
use crate::{Outcome, own};

/// Takes the guest that has come.
pub fn run(args: &ReceiveArgs, acceptor: &mut Acceptor, folder: Option<&Folder>) -> Outcome {
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
        &Cancel::new(),
        &mut |arrived| progress.show(Arrived::from(arrived)),
    );
    drop(progress);
    let received = outcome?;
    let images = kept.get().and_then(|(_, images)| images.as_ref());
    Ok(say::summary(&Summary::new(&received, images)?, args.json)?)
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
        let block = |block: &multifd_wire::control::Block| {
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

/// Stands for the VM. What arrives is kept before the source is told that all has arrived: if it cannot be kept, the
/// source has its guest still.
struct Keeper<'a>(&'a OnceLock<(Shared, Option<Images>)>);

impl VmHandle for Keeper<'_> {
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
        Ok(images.keep()?)
    }
}

/// What is printed for a guest that was received whole.
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
        let block = |block: &multifd_wire::control::Block| Block {
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
            cpu_seconds: own::cpu_seconds()?,
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
