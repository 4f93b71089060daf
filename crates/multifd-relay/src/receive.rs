//! A migration is taken without being a QEMU: its RAM becomes image files.
//!
//! Pages are applied round by round: no channel enters a round before all have finished the one
//! before, because a page may be sent again in each. What main says in a round (zero pages of old
//! machine types, all pages without multifd) belongs to that round too.
//!
//! ```
//! use multifd_relay::SourceSettings;
//! use multifd_relay::image::Folder;
//! use multifd_relay::receive::receive;
//! use multifd_transport::Cancel;
//! use multifd_transport::incoming::Acceptor;
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/guest/source.rs"));
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path().join("images");
//! let images = Folder::prepare(&folder)?;
//! let mut acceptor = Acceptor::bind(&"tcp:127.0.0.1:0".parse()?)?;
//! # send_guest(acceptor.address())?;
//!
//! let (source, cancel) = (SourceSettings::default(), Cancel::new());
//! let report = receive(&mut acceptor, &images, source, &cancel, &mut |_progress| {})?;
//! let ram = std::fs::read(&report.blocks[0].file)?;
//! assert_eq!(ram, [[7; 4096], [0; 4096]].concat());
//! # Ok(())
//! # }
//! ```

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use multifd_transport::incoming::Acceptor;
use multifd_transport::{Cancel, Entry, Inlet, Item};
use multifd_wire::main_stream::MainEvent;
use multifd_wire::{BlockName, Packet, PageSize, RamPacket};

use crate::failure::{Cause, Failure};
use crate::image::{Folder, Image, ImageError, ImageFault, Images};
use crate::ingest::{SourceSettings, take};
use crate::keeper::{Keeper, TakeError, TakenChannel};

pub use crate::keeper::Totals;

/// A migration that was received whole.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReceiveReport {
    /// The RAM blocks, in the source's order.
    pub blocks: Vec<BlockReport>,
    /// Blocks that the source shares with its destination and has not sent (`x-ignore-shared`).
    /// They have no images.
    pub left_out: Vec<BlockName>,
    /// `true`: the source has heard that everything is kept. `None`: it did not ask, or it is not
    /// known.
    pub confirmed: Option<bool>,
    /// The source asked, and it is not known whether it has heard the answer. If its guest runs on,
    /// this is of an earlier moment.
    pub unheard: bool,
    /// Multifd channels; 0 for a migration without multifd.
    pub channels: usize,
    /// The pages and bytes that arrived.
    pub totals: Totals,
    /// From the first connection to the last close.
    pub duration: Duration,
}

/// The pages of one RAM block that arrived.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BlockReport {
    /// Its name.
    pub name: BlockName,
    /// Its length in bytes, and that of its image.
    pub bytes: u64,
    /// The image.
    pub file: PathBuf,
    /// Pages with contents; a page that came twice counts twice.
    pub pages: u64,
    /// Zero pages, counted likewise.
    pub zero_pages: u64,
}

/// Waits for a migration at `acceptor` and writes its RAM blocks to `folder`. `progress` is called
/// about twice a second meanwhile.
///
/// Device state is read and dropped. A source that asks for an answer gets it once every page of
/// every block has come and the images are on the disk: its guest stays stopped then.
///
/// # Errors
///
/// The first failure of any connection or image. No image is left then, and a source that asks for
/// an answer gets it, so that its guest goes on.
pub fn receive(
    acceptor: &mut Acceptor,
    folder: &Folder,
    source: SourceSettings,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Totals),
) -> Result<ReceiveReport, Failure> {
    let receiver = Receiver {
        folder,
        source,
        images: OnceLock::new(),
        page_size: OnceLock::new(),
    };
    let taken = take(acceptor, source, cancel, &receiver, progress)?;
    let images = receiver
        .images
        .get()
        .map(Images::as_slice)
        .unwrap_or_default();
    Ok(ReceiveReport {
        blocks: images
            .iter()
            .filter(|image| !taken.left_out.contains(image.block()))
            .map(BlockReport::of)
            .collect(),
        left_out: taken.left_out,
        confirmed: taken.confirmed,
        unheard: taken.unheard,
        channels: taken.channels,
        totals: taken.totals,
        duration: taken.duration,
    })
}

impl BlockReport {
    fn of(image: &Image) -> Self {
        Self {
            name: image.block().clone(),
            bytes: image.bytes(),
            file: image.path().to_owned(),
            pages: image.pages(),
            zero_pages: image.zero_pages(),
        }
    }
}

struct Receiver<'a> {
    folder: &'a Folder,
    source: SourceSettings,
    /// There from the list of blocks on.
    images: OnceLock<Images>,
    /// The guest's page size, as the channels have shown it.
    page_size: OnceLock<PageSize>,
}

impl Receiver<'_> {
    fn images(&self) -> Result<&Images, ImageError> {
        self.images
            .get()
            .ok_or(ImageError(ImageFault::UnknownBlock))
    }

    /// The image of the block that is `index` in the source's list.
    fn nth(&self, index: usize) -> Result<&Image, ImageError> {
        let images = self.images()?.as_slice();
        images
            .get(index)
            .ok_or(ImageError(ImageFault::UnknownBlock))
    }

    /// Writes a packet's pages to their image. `in_round` is the channel's round, if it has entered
    /// one.
    fn write(
        &self,
        channel: &TakenChannel<'_>,
        inlet: &mut Inlet<'_>,
        packet: &RamPacket,
        in_round: &mut Option<Entry>,
    ) -> Result<(), Cause> {
        let (normal, zero) = (packet.normal(), packet.zero());
        let Some(page_size) = packet.page_size() else {
            return Ok(());
        };
        if normal.is_empty() && zero.is_empty() {
            return Ok(());
        }
        self.page_size.get_or_init(|| page_size);
        let entry = match *in_round {
            Some(entry) => entry,
            None => *in_round.insert(channel.rounds.enter(channel.index)?),
        };
        let image = self.images()?.of(packet.block())?;
        let contents = inlet.read_pages(packet)?;
        if entry.is_behind {
            let _alone = channel.coverage.behind();
            write_behind(channel, image, packet, (page_size, entry), contents)?;
            channel.came(packet, entry.round)
        } else {
            let _in_time = channel.coverage.in_time();
            image.write(normal, page_size.bytes(), contents)?;
            image.clear(zero, page_size.bytes())?;
            channel.came(packet, entry.round)
        }
    }
}

impl Keeper for Receiver<'_> {
    fn channel(&self, channel: &TakenChannel<'_>) -> Result<(), TakeError> {
        let mut inlet = Inlet::new(
            channel.stream,
            channel.hello,
            self.source.limits,
            self.source.codec,
        )?;
        let mut in_round = None;
        let mut counted = 0;
        loop {
            match inlet.next_item()? {
                Item::End => break,
                Item::Padding { .. } => {}
                Item::Packet(Packet::DeviceState(_)) => inlet.skip_payload()?,
                Item::Packet(Packet::Ram(packet)) => {
                    channel.note(&packet);
                    self.write(channel, &mut inlet, &packet, &mut in_round)
                        .map_err(|cause| TakeError::from(cause).in_packet(&packet))?;
                    if packet.is_sync() {
                        let held = channel.rounds.hold(channel.index);
                        held.map_err(|fault| TakeError::from(fault).in_packet(&packet))?;
                        in_round = None;
                    }
                }
            }
            channel
                .tally
                .bytes_in(inlet.bytes_in().saturating_sub(counted));
            counted = inlet.bytes_in();
        }
        Ok(())
    }

    fn main_bytes(&self, _: &[u8]) -> Result<(), Cause> {
        Ok(())
    }

    fn main_event(&self, event: &MainEvent) -> Result<(), TakeError> {
        match event {
            MainEvent::RamBlocks(blocks) => {
                let images = self.folder.create(blocks)?;
                self.images.get_or_init(|| images);
            }
            MainEvent::ZeroPage {
                block: index,
                offset,
            } => {
                // Before the first page has shown the size there is nothing but zeros to clear.
                let page_size = self.page_size.get().copied().unwrap_or(PageSize::K4);
                let image = self.nth(*index)?;
                let cleared = image.clear(&[*offset], page_size.bytes());
                cleared.map_err(|error| TakeError::from(error).in_block(Some(image.block())))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn main_page(&self, index: usize, offset: u64, contents: &[u8]) -> Result<(), TakeError> {
        let image = self.nth(index)?;
        let written = image.write(&[offset], contents.len(), contents);
        written.map_err(|error| TakeError::from(error).in_block(Some(image.block())))
    }

    fn keep(&self, left_out: &[BlockName]) -> Result<(), Cause> {
        let images = self.images()?;
        images.sync()?;
        Ok(images.publish_but(left_out)?)
    }

    fn withdraw(&self) {
        if let Some(images) = self.images.get() {
            images.withdraw();
        }
    }

    const NEEDS_MEMORY_ONLY: bool = true;
}

/// Writes pages of a round that others have gone beyond, but those that have come again since.
fn write_behind(
    channel: &TakenChannel<'_>,
    image: &Image,
    packet: &RamPacket,
    (page_size, entry): (PageSize, Entry),
    contents: &[u8],
) -> Result<(), ImageError> {
    let bytes = page_size.bytes();
    let (block, round) = (packet.block(), entry.round);
    let is_new = |offset: u64| !channel.coverage.is_newer(block, page_size, offset, round);
    for (&offset, contents) in packet.normal().iter().zip(contents.chunks_exact(bytes)) {
        if is_new(offset) {
            image.write(&[offset], bytes, contents)?;
        }
    }
    for &offset in packet.zero().iter().filter(|&&offset| is_new(offset)) {
        image.clear(&[offset], bytes)?;
    }
    Ok(())
}
