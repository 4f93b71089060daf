//! `multifd inspect`.

mod json;
mod text;

use std::io::BufWriter;
use std::path::Path;

use multifd_relay::inspect::{ChannelSummary, FileReport, MainSummary, StreamReport, Summary};
use multifd_wire::PageSize;

use crate::args::InspectArgs;
use crate::process::Outcome;
use crate::say;

/// Looks through all files. What is wrong with one does not keep the next from being read.
pub(crate) fn run(args: &InspectArgs) -> Outcome {
    let out = BufWriter::new(say::stdout());
    let unsound = if args.json {
        json::print(out, &args.files, args.packets)?
    } else {
        text::print(out, &args.files, args.packets)?
    };
    for fault in &unsound {
        say::note(fault);
    }
    match unsound.len() {
        0 => Ok(()),
        1 => Err("1 file could not be read whole; what was readable is shown".into()),
        count => {
            Err(format!("{count} files could not be read whole; what was readable is shown").into())
        }
    }
}

/// The report on a file, or on one stream of a recording.
struct View<'a> {
    /// Nothing for a file that cannot be read at all.
    kind: Option<&'static str>,
    channel: Option<u8>,
    page_size: Option<PageSize>,
    channels: Option<ChannelSummary>,
    main: Option<&'a MainSummary>,
    fault: Option<String>,
}

impl<'a> View<'a> {
    fn of_file(report: &'a FileReport) -> Self {
        let first = report.streams.first().filter(|_| !report.recording);
        let channels = report.channels();
        let main = report.main();
        let of_channels = channels.as_ref().and_then(|channels| channels.page_size);
        Self {
            kind: Some(first.map_or("recording", kind)),
            channel: channels
                .as_ref()
                .and_then(|channels| channels.channel)
                .filter(|_| !report.recording),
            page_size: of_channels.or(main.and_then(|main| main.page_size)),
            channels,
            main,
            fault: fault_of(report),
        }
    }

    fn unreadable(fault: String) -> Self {
        Self {
            kind: None,
            channel: None,
            page_size: None,
            channels: None,
            main: None,
            fault: Some(fault),
        }
    }

    fn of_stream(stream: &'a StreamReport) -> Self {
        let fault = stream.fault.as_ref().map(|fault| say::chain(fault));
        match &stream.summary {
            Summary::Main(main) => Self {
                kind: Some(kind(stream)),
                channel: None,
                page_size: main.page_size,
                channels: None,
                main: Some(main),
                fault,
            },
            Summary::Channel(channel) => Self {
                kind: Some(kind(stream)),
                channel: channel.channel,
                page_size: channel.page_size,
                channels: Some(channel.clone()),
                main: None,
                fault,
            },
        }
    }
}

fn kind(stream: &StreamReport) -> &'static str {
    match stream.summary {
        Summary::Main(_) => "main",
        Summary::Channel(_) => "channel",
    }
}

/// The first thing wrong with a file.
fn fault_of(report: &FileReport) -> Option<String> {
    let damage = report.damage.as_ref().map(|damage| say::chain(damage));
    damage.or_else(|| {
        let mut faults = report
            .streams
            .iter()
            .filter_map(|stream| stream.fault.as_ref());
        faults.next().map(|fault| say::chain(fault))
    })
}

/// A fault with the file that has it.
fn in_file(path: &Path, fault: &str) -> String {
    format!("{}: {fault}", say::printable_path(path))
}
