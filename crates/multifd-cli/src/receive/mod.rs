//! `multifd receive`.

mod engine;
mod qemu;

use multifd_relay::image::Folder;
use multifd_transport::incoming::Peer;

pub use engine::Summary;

use crate::args::ReceiveArgs;
use crate::process::Outcome;
use crate::say;
use crate::signals::Signals;

/// Takes one migration, from a QEMU or a source engine.
pub fn run(args: &ReceiveArgs) -> Outcome {
    let outcome = take(args);
    if let (Err(failure), true) = (&outcome, args.json) {
        say::report_json(&say::Failed::new(failure.as_ref()));
    }
    outcome
}

fn take(args: &ReceiveArgs) -> Outcome {
    let folder = args.dump.as_deref().map(Folder::prepare).transpose()?;
    // Install handlers before listening, so that a signal always ends the command with a message.
    let cancel = Signals::install()?.cancel();
    let mut acceptor = say::listen_with(&args.listen, args.mode)?;
    loop {
        match (acceptor.peer(&cancel)?, &folder) {
            (Peer::Engine, folder) => {
                match engine::run(args, &mut acceptor, folder.as_ref(), &cancel) {
                    // A connection that has agreed on nothing was no migration.
                    Err(engine::Fault::Opening(failure)) if !cancel.is_cancelled() => {
                        say::note(say::chain(&failure));
                    }
                    Err(fault) => return Err(fault.into()),
                    Ok(()) => return Ok(()),
                }
            }
            (Peer::Qemu, Some(folder)) => return qemu::run(args, &mut acceptor, folder, &cancel),
            (Peer::Qemu, None) => {
                // It keeps its guest, as nothing is answered.
                drop(acceptor.accept(&cancel)?);
                say::note("refused a QEMU: add --dump DIR, or its memory would be lost");
            }
        }
    }
}
