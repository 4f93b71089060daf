//! `multifd replay`.

use multifd_relay::replay::Replay;

use crate::args::ReplayArgs;
use crate::process::Outcome;
use crate::say::{self, Progress};
use crate::signals::Signals;

/// Checks a recording, then sends it.
pub(crate) fn run(args: &ReplayArgs) -> Outcome {
    let replay = Replay::open(&args.file)?;
    let cancel = Signals::install()?.cancel();
    let mut progress = Progress::new();
    let outcome = replay.send(&args.connect, &cancel, &mut |bytes| {
        progress.show(format_args!("{} sent", say::size(bytes)));
    });
    drop(progress);
    let report = outcome?;
    say::report_line(format_args!(
        "channels {}, bytes out {}, seconds {:.3}, {}",
        report.channels,
        report.bytes_out,
        say::seconds(report.duration),
        if report.confirmed {
            "the destination has the guest"
        } else {
            "sent; the recording has no return path, so the destination could not say that it has the guest"
        }
    ));
    Ok(())
}
