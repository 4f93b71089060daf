//! The memory of a QEMU's guest is received.

use std::fmt;

use multifd_relay::SourceSettings;
use multifd_relay::image::Folder;
use multifd_relay::receive::{ReceiveReport, receive};
use multifd_transport::Cancel;
use multifd_transport::incoming::Acceptor;
use serde::Serialize;

use crate::args::ReceiveArgs;
use crate::process::Outcome;
use crate::say::{self, Arrived, Progress};

/// Takes the migration that has come.
pub(super) fn run(
    args: &ReceiveArgs,
    acceptor: &mut Acceptor,
    folder: &Folder,
    cancel: &Cancel,
) -> Outcome {
    let mut source = SourceSettings::default();
    source.switchover_ack = args.switchover_ack;
    source.codec.accel = args.accel;
    let mut progress = Progress::new();
    let outcome = receive(acceptor, folder, source, cancel, &mut |totals| {
        progress.show(Arrived::from(totals))
    });
    drop(progress);
    say::report(&Summary::from(outcome?), args.json);
    Ok(())
}

/// [`say::UNHEARD`] in JSON.
const UNHEARD_ADVICE: &str = "it is not known whether the source has heard that everything is kept: look at it (info \
    status); if its guest runs on there, the images are of an earlier moment";

/// The summary of a complete migration.
#[derive(Serialize)]
struct Summary {
    blocks: Vec<Block>,
    /// Blocks that the source shares and has not sent.
    left_out: Vec<String>,
    /// The source has heard that everything is kept; `null` where it did not ask, or nobody knows.
    confirmed: Option<bool>,
    /// What to do where the source asked and may not have heard.
    advice: Option<&'static str>,
    channels: usize,
    pages: u64,
    zero_pages: u64,
    bytes_in: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct Block {
    name: String,
    bytes: u64,
    file: say::FilePath,
    pages: u64,
    zero_pages: u64,
}

impl From<ReceiveReport> for Summary {
    fn from(report: ReceiveReport) -> Self {
        let blocks = report.blocks.into_iter().map(|block| Block {
            name: block.name.to_string(),
            bytes: block.bytes,
            file: block.file.into(),
            pages: block.pages,
            zero_pages: block.zero_pages,
        });
        Self {
            blocks: blocks.collect(),
            left_out: report.left_out.iter().map(ToString::to_string).collect(),
            confirmed: report.confirmed,
            advice: report.unheard.then_some(UNHEARD_ADVICE),
            channels: report.channels,
            pages: report.totals.pages,
            zero_pages: report.totals.zero_pages,
            bytes_in: report.totals.bytes_in,
            seconds: say::seconds(report.duration),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for block in &self.blocks {
            writeln!(
                f,
                "block {}, bytes {}, pages {}, zero pages {}, file {}",
                block.name, block.bytes, block.pages, block.zero_pages, block.file
            )?;
        }
        for block in &self.left_out {
            writeln!(f, "{}", say::LeftOut(block))?;
        }
        match (self.confirmed, self.advice) {
            (Some(_), _) => {}
            (None, Some(_)) => f.write_str(say::UNHEARD)?,
            (None, None) => f.write_str(say::NOT_CONFIRMED)?,
        }
        write!(
            f,
            "channels {}, pages {}, zero pages {}, bytes in {}, seconds {:.3}",
            self.channels, self.pages, self.zero_pages, self.bytes_in, self.seconds
        )
    }
}
