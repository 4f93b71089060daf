//! The suite for every codec, see `suite`.

use multifd_codec::Accel;
use multifd_wire::Method;

use testkit::libqpl::{dynamic, healthy_device, libqpl, streams, with};
use testkit::suite::Subject;

testkit::conformance! {
    qpl_in_qpl_software qpl_on_hardware
    zlib_in_qpl_software zlib_on_hardware
    canned_in_qpl_software canned_on_hardware
}

fn qpl_in_qpl_software() -> Option<Subject> {
    libqpl().then(|| subject(Method::Qpl, Accel::QplSoftware))
}

fn zlib_in_qpl_software() -> Option<Subject> {
    libqpl().then(|| subject(Method::Zlib, Accel::QplSoftware))
}

fn qpl_on_hardware() -> Option<Subject> {
    healthy_device().map(|_| subject(Method::Qpl, Accel::QplHardware))
}

fn zlib_on_hardware() -> Option<Subject> {
    healthy_device().map(|_| subject(Method::Zlib, Accel::QplHardware))
}

fn canned_in_qpl_software() -> Option<Subject> {
    libqpl().then(|| subject(Method::Canned, Accel::QplSoftware))
}

fn canned_on_hardware() -> Option<Subject> {
    healthy_device().map(|_| subject(Method::Canned, Accel::QplHardware))
}

fn subject(method: Method, accel: Accel) -> Subject {
    let fixed = with(accel);
    let dynamic = dynamic(accel);
    Subject {
        method,
        settings: [1, 3, 16, 128]
            .into_iter()
            .flat_map(|count| [streams(fixed, count), streams(dynamic, count)])
            .collect(),
        // Every packet goes through the simulated device's pipes.
        damage_every: if accel == Accel::QplHardware { 23 } else { 1 },
    }
}
