//! `multifd record`.

use multifd_transport::{Cancel, SourceSettings};
use multifd_transport::record::{Output, record};

use crate::Outcome;
use crate::args::RecordArgs;
use crate::say::{self, Arrived, Progress};

/// Takes one migration.
pub fn run(args: &RecordArgs) -> Outcome {
    let output = Output::create(&args.out)?;
    let mut acceptor = say::listen(&args.listen)?;
    let mut source = SourceSettings::default();
    source.switchover_ack = args.switchover_ack;
    let mut progress = Progress::new();
    let outcome = record(&mut acceptor, output, source, &Cancel::new(), &mut |totals| {
        progress.show(Arrived(totals))
    });
    drop(progress);
    let report = outcome?;
    say::result(format_args!(
        "channels {}, pages {}, zero pages {}, bytes in {}, seconds {:.3}, file {} of {} bytes",
        report.channels,
        report.totals.pages,
        report.totals.zero_pages,
        report.totals.bytes_in,
        say::seconds(report.duration),
        report.file.display(),
        report.file_bytes
    ))?;
    Ok(())
}
