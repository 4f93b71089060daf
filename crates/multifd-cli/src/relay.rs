//! `multifd relay`.

use std::{fmt, io};

use multifd_codec::Accel;
use multifd_transport::Failure;
use multifd_transport::failure::{Cause, Leg};
use multifd_transport::relay::{MigrationReport, Relay, RelayConfig, Totals, Work};
use multifd_wire::{Limits, Method};
use serde::Serialize;

use crate::Outcome;
use crate::args::RelayArgs;
use crate::say::{self, Progress};

/// Passes migrations on: one, or one after another for ever.
pub fn run(args: &RelayArgs) -> Outcome {
    if args.listen == args.connect {
        return Err(format!("{} would be connected to itself", args.listen).into());
    }
    let method = args.codec.compression.into();
    let config = RelayConfig {
        connect: args.connect.clone(),
        compression: method,
        settings: args.codec.settings()?,
        limits: Limits::default(),
    };
    // A relay that compresses nothing has an accelerator for reading only.
    let reads = method == Method::None && config.settings.accel != Accel::None;
    let (does, backend) = if reads {
        ("reading qpl and canned".to_owned(), config.reader())
    } else {
        (format!("writing {method}"), config.backend())
    };
    let backend = backend.map_err(|error| error.to_string())?;
    let mut relay = Relay::bind(&args.listen, config)
        .map_err(|error| format!("cannot listen on {}: {error}", args.listen))?;
    if reads || method != Method::None {
        say::note(format_args!("{does}: {backend}"));
    }
    say::note(format_args!("listening on {}", relay.address()));
    loop {
        let mut progress = Progress::new();
        let outcome = relay.serve_one(&mut |totals| progress.show(Running(totals)));
        drop(progress);
        match outcome {
            Ok(report) => say::summary(&Summary::from(report), args.json)?,
            Err(failure) => {
                if args.json {
                    say::json(&say::Failed::new(&failure))?;
                }
                let told = say::chain(&failure) + advice(method, &failure);
                // Without a listener there will be no next migration either.
                if args.once || matches!(failure.cause, Cause::Listener(_)) {
                    return Err(told.into());
                }
                say::note(told);
            }
        }
        if args.once {
            return Ok(());
        }
    }
}

/// What may be behind a failure. A QEMU that is sent what it does not expect closes the channel, and says why at its own end
/// only.
fn advice(method: Method, failure: &Failure) -> &'static str {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match &failure.cause {
        Cause::Io(error)
            if failure.leg == Leg::Destination
                && matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {}
        _ => return "",
    }
    match method {
        Method::None => "",
        Method::Canned => " (canned is read by a multifd only, and by no QEMU)",
        _ => {
            " (if the destination is a QEMU, its multifd-compression has to be that of this relay)"
        }
    }
}

/// What is printed for a migration that went through whole.
#[derive(Serialize)]
struct Summary {
    channels: usize,
    pages: u64,
    zero_pages: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// How many bytes came in for each that went out.
    ratio: f64,
    seconds: f64,
    decoded: Option<Done>,
    encoded: Option<Done>,
}

/// What the codecs of one direction did.
#[derive(Serialize)]
struct Done {
    method: &'static str,
    backend: String,
    hardware: u64,
    software: u64,
    raw: u64,
}

impl From<Work> for Done {
    fn from(work: Work) -> Self {
        Self {
            method: work.method.as_str(),
            backend: work.backend.to_string(),
            hardware: work.pages.hardware,
            software: work.pages.software,
            raw: work.pages.raw,
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} by {}: hardware {}, software {}, raw {}",
            self.method, self.backend, self.hardware, self.software, self.raw
        )
    }
}

impl From<MigrationReport> for Summary {
    fn from(report: MigrationReport) -> Self {
        let Totals {
            pages,
            zero_pages,
            bytes_in,
            bytes_out,
        } = report.totals;
        Self {
            channels: report.channels,
            pages,
            zero_pages,
            bytes_in,
            bytes_out,
            ratio: ratio(bytes_in, bytes_out),
            seconds: say::seconds(report.duration),
            decoded: report.decoded.map(Done::from),
            encoded: report.encoded.map(Done::from),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "channels {}, pages {}, zero pages {}, bytes in {}, bytes out {}, ratio {:.3}, seconds {:.3}",
            self.channels,
            self.pages,
            self.zero_pages,
            self.bytes_in,
            self.bytes_out,
            self.ratio,
            self.seconds
        )?;
        if let Some(done) = &self.decoded {
            write!(f, ", decoded {done}")?;
        }
        if let Some(done) = &self.encoded {
            write!(f, ", encoded {done}")?;
        }
        Ok(())
    }
}

/// A migration under way.
struct Running(Totals);

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals {
            pages,
            zero_pages,
            bytes_in,
            bytes_out,
        } = self.0;
        write!(
            f,
            "{pages} pages, {zero_pages} zero pages, {} in, {} out",
            say::size(bytes_in),
            say::size(bytes_out)
        )
    }
}

fn ratio(bytes_in: u64, bytes_out: u64) -> f64 {
    say::rounded(bytes_in as f64 / bytes_out.max(1) as f64, 3)
}
