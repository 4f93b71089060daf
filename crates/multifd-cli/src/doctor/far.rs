//! The way to the far relay, step by step.

use multifd_relay::leg::{
    Encryption, EncryptionOptions, FarRelay, LegAddress, VisitError, VisitStep, Visitor,
};
use multifd_transport::{Address, Cancel};
use multifd_wire::Method;
use std::time::Duration;

use super::args::DoctorArgs;
use super::check::Check;
use crate::codec::Codec;
use crate::say;

/// How long one step may take. All of them, and the rest, fit into a quarter of a minute then.
const WITHIN: Duration = Duration::from_secs(4);

/// The methods that a migration may want, the best first for an automatic effort.
const METHODS: [Method; 5] = [
    Method::Zstd,
    Method::Zlib,
    Method::Canned,
    Method::Qpl,
    Method::None,
];

/// Asks the far relay, and tells each step.
pub(super) fn visit(
    to: &LegAddress,
    args: &DoctorArgs,
    codec: &Codec,
    cancel: &Cancel,
    tell: &mut dyn FnMut(Check),
) -> Option<FarRelay> {
    if to.is_exposed() {
        tell(Check::warn(
            "network",
            format!("{to} carries the guest's memory over a network in clear"),
            "trunk: with --tls-dir at both relays; multifd tls init makes certificates for a try",
        ));
    }
    let encryption = match encryption(to, args) {
        Ok(encryption) => encryption,
        Err(words) => {
            let advice = "give the folder of this host's certificates: --tls-dir DIR";
            tell(Check::fail("tls", words, advice));
            return None;
        }
    };
    // Any method, so that the relay can say which of them it reads.
    let mut methods = vec![codec.method];
    methods.extend(METHODS.into_iter().filter(|method| *method != codec.method));
    let mut visitor = Visitor::new(to.clone(), encryption, methods);
    visitor.name = args.name.clone();
    visitor.within = WITHIN;
    let seen = visitor.visit(&|| cancel.is_cancelled(), &mut |step| tell(good(&step, to)));
    match seen {
        Err(error) => {
            tell(bad(&error, to, args));
            None
        }
        Ok(far) => {
            judge(&far, codec, tell);
            Some(far)
        }
    }
}

fn encryption(to: &LegAddress, args: &DoctorArgs) -> Result<Encryption, String> {
    let mut options = EncryptionOptions::default();
    options.folder = args.tls_dir.clone();
    options.hostname = args.tls_hostname.clone();
    // This host's own leg, which is in clear.
    let own = LegAddress::from(Address::Unix("source".into()));
    Encryption::open(&own, to, &options).map_err(|error| say::chain(&error))
}

fn milliseconds(took: Duration) -> f64 {
    say::rounded(took.as_secs_f64() * 1000.0, 2)
}

fn good(step: &VisitStep, to: &LegAddress) -> Check {
    match step {
        VisitStep::Resolved { hosts, took } => {
            let took = milliseconds(*took);
            let found = match hosts.is_empty() {
                true => format!("{to} is a path"),
                false => format!("{to} is {} ({took} ms)", hosts.join(", ")),
            };
            Check::ok("resolve", found)
        }
        VisitStep::Connected { took } => {
            let found = format!("the host has answered in {} ms", milliseconds(*took));
            Check::ok("connect", found)
        }
        VisitStep::Secured { took } => Check::ok(
            "tls",
            format!(
                "TLS 1.3 in {} ms, and the server's certificate is for this host",
                milliseconds(*took)
            ),
        ),
        _ => Check::ok("connect", "a step was taken"),
    }
}

fn bad(error: &VisitError, to: &LegAddress, args: &DoctorArgs) -> Check {
    let words = say::chain(error);
    let text = to.address.to_string();
    let place = text.strip_prefix("tcp:").unwrap_or(&text);
    let (host, port) = place.rsplit_once(':').unwrap_or((place, ""));
    let listens = match to.address.unix_path() {
        Some(path) => format!("ss -lxp src {}", say::printable_path(path)),
        None => format!("on {host}: ss -ltnp 'sport = :{port}'"),
    };
    match error {
        VisitError::Resolve(_) => Check::fail("resolve", words, format!("getent ahosts {host}")),
        VisitError::Connect(_) => Check::fail(
            "connect",
            words,
            format!("there: multifd relay --listen {to} ...; see what listens {listens}"),
        ),
        VisitError::Tls(_) => {
            let dir = args.tls_dir.as_deref().map(say::printable_path);
            let dir = dir.unwrap_or_else(|| "DIR".to_owned());
            Check::fail(
                "tls",
                words,
                format!("on both hosts: multifd doctor --tls-dir {dir}"),
            )
        }
        VisitError::Answer(_) => Check::fail(
            "far relay",
            words,
            format!("see what listens there, {listens}; a relay needs --listen {to}"),
        ),
        VisitError::Refused { .. } => Check::fail(
            "far relay",
            words,
            "see that relay's options (--allow, --name here), and whether it ends at the moment",
        ),
        VisitError::Older => Check::warn(
            "far relay",
            format!("{words}: what it understands is not known"),
            "nothing if it is old on purpose; otherwise bring it to this version",
        ),
        _ => Check::fail("far relay", words, listens),
    }
}

fn judge(far: &FarRelay, codec: &Codec, tell: &mut dyn FnMut(Check)) {
    const NAME: &str = "far relay";
    let names: Vec<_> = far.methods.iter().map(ToString::to_string).collect();
    let kept = match far.delta_bytes {
        0 => "keeps no pages for differences".to_owned(),
        bytes => format!("keeps up to {} of pages for differences", say::size(bytes)),
    };
    let found = format!(
        "trunk version {}; reads {}; {kept}; up to {} connections for a channel; answered in {} ms",
        far.version,
        names.join(", "),
        far.strands,
        milliseconds(far.answer)
    );
    tell(Check::ok(NAME, found));
    let reads = far.methods.contains(&codec.method);
    if !reads && !codec.auto {
        let method = codec.method;
        let advice = format!("--compression {}", far.method);
        tell(Check::fail(
            NAME,
            format!("it does not read {method}"),
            advice,
        ));
    }
    if far.only_verified {
        tell(Check::warn(
            NAME,
            "it takes migrations with verification only",
            "--verify at the source's relay",
        ));
    }
    if far.delta_bytes == 0 && codec.method != Method::None {
        tell(Check::warn(
            NAME,
            "pages that are sent again go whole: it has no memory for differences",
            "--delta-memory SIZE at that relay, or free memory there",
        ));
    }
    if codec.auto && !far.plain_packets {
        tell(Check::warn(
            NAME,
            "it takes no plain pages among compressed ones: on a fast link the effort cannot go \
             below the fastest compression",
            "bring it to this version",
        ));
    }
    let round_trip = milliseconds(far.round_trip);
    tell(Check::ok("round trip", format!("{round_trip} ms")));
}
