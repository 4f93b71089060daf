//! `multifd receive`.

mod engine;
mod qemu;

use multifd_transport::Cancel;
use multifd_transport::destination::Peer;
use multifd_transport::image::Folder;

pub use engine::Summary;

use crate::Outcome;
use crate::args::ReceiveArgs;
use crate::say;

/// Takes one migration, whoever it comes from.
pub fn run(args: &ReceiveArgs) -> Outcome {
    let folder = args.dump.as_deref().map(Folder::prepare).transpose()?;
    let mut acceptor = say::listen_with(&args.listen, args.mode)?;
    let outcome = match (acceptor.peer(&Cancel::new())?, &folder) {
        (Peer::Engine, folder) => engine::run(args, &mut acceptor, folder.as_ref()),
        (Peer::Qemu, Some(folder)) => qemu::run(args, &mut acceptor, folder),
        (Peer::Qemu, None) => {
            Err("a QEMU comes, whose memory would be lost: add --dump DIR".into())
        }
    };
    if let (Err(failure), true) = (&outcome, args.json) {
        say::json(&say::Failed::new(failure.as_ref()))?;
    }
    outcome
}
