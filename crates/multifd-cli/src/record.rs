//! `multifd record`.

use multifd_relay::SourceSettings;
use multifd_relay::record::{Output, record};

use crate::args::RecordArgs;
use crate::process::Outcome;
use crate::say::{self, Arrived, Progress};
use crate::signals::Signals;

/// Takes one migration.
pub(crate) fn run(args: &RecordArgs) -> Outcome {
    let output = Output::create(&args.out)?;
    let cancel = Signals::install()?.cancel();
    let mut acceptor = say::listen_with(&args.listen, args.mode)?;
    let mut source = SourceSettings::default();
    source.switchover_ack = args.switchover_ack;
    let mut progress = Progress::new();
    let outcome = record(&mut acceptor, output, source, &cancel, &mut |totals| {
        progress.show(Arrived::from(totals))
    });
    drop(progress);
    let report = outcome?;
    for block in &report.left_out {
        say::report_line(say::LeftOut(block));
    }
    let unconfirmed = match report.confirmed {
        Some(_) => "",
        None if report.unheard => say::UNHEARD,
        None => say::NOT_CONFIRMED,
    };
    say::report_line(format_args!(
        "{unconfirmed}channels {}, pages {}, zero pages {}, bytes in {}, seconds {:.3}, file {} of {} bytes",
        report.channels,
        report.totals.pages,
        report.totals.zero_pages,
        report.totals.bytes_in,
        say::seconds(report.duration),
        say::printable_path(&report.file),
        report.file_bytes
    ));
    Ok(())
}
