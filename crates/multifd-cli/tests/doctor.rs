//! `multifd doctor`: what it finds, and what it leaves alone.
#![cfg(feature = "tls")]

mod support;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use multifd_relay::leg::LegAddress;
use multifd_relay::trunk::{Answer, PrefaceReceiver, Refusal, RefusalCode};
use multifd_transport::{Address, Stream};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use serde_json::Value;
use support::made::{Shape, short};
use support::peers::{Destination, Source};
use support::{Multifd, program};

/// What it says, and its exit status.
struct Said {
    status: Option<i32>,
    all: Value,
    stderr: String,
}

impl Said {
    /// The checks of this name, each with its state, what was found, and the advice.
    fn checks(&self, name: &str) -> Vec<(String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let checks = self.all["checks"].as_array().expect("checks").iter();
        checks
            .filter(|check| check["check"] == name)
            .map(|check| {
                (
                    text(&check["state"]),
                    text(&check["found"]),
                    text(&check["advice"]),
                )
            })
            .collect()
    }

    /// Exactly one check of this name is `fail`, and says this; so does the exit status.
    fn fails(&self, name: &str, words: &str) {
        self.has("fail", name, words);
        assert_eq!(
            (self.status, &self.all["ok"]),
            (Some(1), &false.into()),
            "{}",
            self.all
        );
        assert!(
            self.stderr.contains("a migration would fail"),
            "{}",
            self.stderr
        );
    }

    fn has(&self, state: &str, name: &str, words: &str) {
        let checks = self.checks(name);
        let found = checks
            .iter()
            .filter(|check| check.0 == state && check.1.contains(words));
        assert_eq!(found.count(), 1, "{state} {name}, {words:?}: {}", self.all);
        for (state, _, advice) in &checks {
            assert_eq!(state == "ok", advice.is_empty(), "{checks:?}");
        }
    }
}

/// Runs the command with a folder for temporary files of its own, in which nothing may stay.
fn doctor(args: &[&str]) -> Said {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(program());
    command.args(["doctor", "--json"]).args(args);
    let ended = Multifd::spawn(command.env("TMPDIR", temporary.path())).end();
    let left = support::files(temporary.path());
    assert!(left.is_empty(), "{left:?}");
    Said {
        status: ended.status.code(),
        all: serde_json::from_str(ended.stdout.trim())
            .unwrap_or_else(|error| panic!("{error}: {ended:?}")),
        stderr: ended.stderr,
    }
}

/// The same, for a look at the way alone: plain pages take the shortest time.
fn looks(args: &[&str]) -> Said {
    doctor(&[&["--compression", "none"], args].concat())
}

fn certificates(folder: &Path, name: &str, more: &[&str]) -> PathBuf {
    let dir = folder.join(name);
    let path = dir.to_str().expect("a path");
    let hosts = ["--host", "127.0.0.1", "--host", "localhost"];
    Multifd::start([&["tls", "init", path], &hosts[..], more].concat())
        .end()
        .well();
    dir
}

/// A relay that listens at `listen`, and where.
fn relay(listen: &str, connect: &str, more: &[&str]) -> (Multifd, String) {
    let args = ["relay", "--listen", listen, "--connect", connect];
    let mut relay = Multifd::start([&args, more].concat());
    let leg: LegAddress = (*relay).address();
    (relay, leg.to_string())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// A whole host and a whole way, and the far relay goes on as if nobody had been there.
#[test]
fn a_way_that_works_is_ok_and_the_far_relay_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = certificates(folder.path(), "pki", &[]);
    let destination = Destination::new(folder.path(), 2);
    let connect = destination.address.to_string();
    let more = ["--once", "--tls-dir", text(&dir)];
    let (mut far, to) = relay("trunk:127.0.0.1:0", &connect, &more);
    let said = doctor(&["--tls-dir", text(&dir), "--to", &to, "--link", "1gbit"]);
    assert_eq!(said.status, Some(0), "{} {}", said.all, said.stderr);
    assert_eq!(said.all["ok"], true);
    let names = [
        "server",
        "client",
        "resolve",
        "connect",
        "tls",
        "round trip",
        "pages",
    ];
    for name in names {
        said.has("ok", name, "");
    }
    said.has("ok", "server", "days left");
    said.has("ok", "far relay", "reads zstd, zlib, canned, qpl, none");
    said.has(
        "ok",
        "pages",
        "over a trunk with these certificates, and all arrived whole",
    );
    let figures = &said.all["figures"];
    let methods: Vec<_> = figures["runs"].as_array().expect("runs").iter().collect();
    assert_eq!(methods.len(), 2, "{figures}");
    for run in methods {
        assert!(run["pages"].as_u64() > Some(0), "{run}");
        assert!(run["link_pages_per_second"].as_f64() > Some(0.0), "{run}");
    }
    assert!(figures["codec"]["decompress_bytes_per_second"].as_f64() > Some(0.0));
    // Each page changes in 64 bytes of 4096.
    let again = &figures["again"];
    assert!(
        again["differences_percent"].as_f64() > Some(90.0),
        "{again}"
    );
    assert!(
        again["bytes_per_difference"].as_f64() < Some(128.0),
        "{again}"
    );
    // `--once` waits for a migration still.
    while !far
        .complaint()
        .contains("looked whether a migration would be taken here")
    {}
    let near = ["--once", "--tls-dir", text(&dir)];
    let (near, address) = relay("tcp:127.0.0.1:0", &to, &near);
    let migration = short(&Shape {
        return_path: true,
        ..Shape::default()
    });
    let address: Address = address.parse().expect("an address");
    let source = Source::begin(&address, &migration);
    destination.take(&migration);
    source.wait_for_end();
    near.end().well();
    let ended = far.end();
    assert!(ended.status.success(), "{ended:?}");
    for words in ["passed over", "failed"] {
        assert!(!ended.stderr.contains(words), "{ended:?}");
    }
}

#[test]
fn this_host_alone_is_told_of_line_by_line() {
    let ended = Multifd::start(["doctor", "--compression", "zlib"]).end();
    let said = ended.well();
    for line in [
        "processors",
        "descriptors",
        "threads",
        "memory",
        "sandbox",
        "pages",
    ] {
        let has = |text: &str| text.split_whitespace().nth(1) == Some(line);
        assert!(said.lines().any(has), "{line}: {said}");
    }
    for words in [
        "  zlib: ",
        "limit: ",
        "as differences of",
        "a migration would work here",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

/// Certificates that are of no use, and a key that others may read.
#[test]
fn certificates_are_looked_at() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = certificates(folder.path(), "ours", &[]);
    let theirs = certificates(folder.path(), "theirs", &[]);
    let old = folder.path().join("old");
    expired(&old);
    let said = looks(&["--tls-dir", text(&old)]);
    said.fails("server", "server-cert.pem has expired on");
    said.has("fail", "client", "client-cert.pem has expired on");

    // Of two sets.
    fs::copy(theirs.join("client-cert.pem"), ours.join("client-cert.pem")).expect("a copy");
    let key = ours.join("server-key.pem");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(key, mode).expect("a mode");
    let said = looks(&["--tls-dir", text(&ours)]);
    said.fails("client", "is not signed by a CA in ca-cert.pem beside it");
    let keys = said.checks("server");
    let warned = keys.iter().find(|check| check.0 == "warn");
    let warned = warned.unwrap_or_else(|| panic!("{keys:?}"));
    assert!(warned.1.contains("others may read"), "{keys:?}");
    assert!(warned.2.starts_with("chmod 600 "), "{keys:?}");

    // A source has the files of a client alone.
    for file in ["server-cert.pem", "server-key.pem"] {
        fs::remove_file(theirs.join(file)).expect("a file");
    }
    let said = looks(&["--tls-dir", text(&theirs)]);
    assert_eq!(said.status, Some(0), "{}", said.all);
    said.has("ok", "server", "the folder is a source's");
    said.has("ok", "pages", "over an encrypted trunk");
    let said = looks(&["--tls-dir", text(&folder.path().join("none"))]);
    said.fails("client", "is missing");
}

/// Makes a whole set that has expired yesterday.
fn expired(dir: &Path) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.expect("a clock").as_secs();
    let day =
        |before: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now - before * 86_400);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = KeyPair::generate().expect("a key");
    let ca = CertifiedIssuer::self_signed(params, ca).expect("a CA");
    fs::create_dir(dir).expect("a folder");
    fs::write(dir.join("ca-cert.pem"), ca.pem()).expect("a file");
    let ends = [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ];
    for (end, usage) in ends {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.extended_key_usages = vec![usage];
        (params.not_before, params.not_after) = (day(30), day(1));
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &ca).expect("a certificate");
        fs::write(dir.join(format!("{end}-cert.pem")), signed.pem()).expect("a file");
        fs::write(dir.join(format!("{end}-key.pem")), key.serialize_pem()).expect("a file");
    }
}

/// The far relay refuses this host's certificate, or this host its, and there may be no TLS at all.
#[test]
fn ends_that_do_not_trust_each_other_are_told_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = certificates(folder.path(), "ours", &["--client", "src1"]);
    let theirs = certificates(folder.path(), "theirs", &[]);
    let more = ["--tls-dir", text(&theirs), "--allow", "src1=web-*"];
    let (far, to) = relay("trunk:127.0.0.1:0", "unix:nowhere", &more);
    let said = looks(&["--tls-dir", text(&ours), "--to", &to]);
    said.fails("tls", "certificate");
    assert!(said.checks("far relay").is_empty());
    // In clear to an encrypted trunk.
    let clear = to.replace("trunk:", "trunk+tcp:");
    let said = looks(&["--to", &clear]);
    said.fails("far relay", "this trunk is encrypted");
    drop(far);
    // The name.
    let more = ["--tls-dir", text(&ours), "--allow", "src1=web-*"];
    let (_far, to) = relay("trunk:127.0.0.1:0", "unix:nowhere", &more);
    let said = looks(&["--tls-dir", text(&ours), "--to", &to]);
    said.fails("far relay", "may not use the name vm");
    let said = looks(&["--tls-dir", text(&ours), "--to", &to, "--name", "web-1"]);
    assert_eq!(said.status, Some(0), "{}", said.all);
    // Plain bytes where TLS should be.
    let (_far, to) = relay("trunk+tcp:127.0.0.1:0", "unix:nowhere", &["--verify"]);
    let encrypted = to.replace("trunk+tcp:", "trunk:");
    let said = looks(&["--tls-dir", text(&ours), "--to", &encrypted]);
    said.fails("tls", "");
    let said = looks(&["--to", &encrypted]);
    said.fails("tls", "needs certificates");
    // A relay with wishes of its own.
    let said = looks(&["--to", &to]);
    assert_eq!(said.status, Some(0), "{}", said.all);
    said.has("warn", "far relay", "with verification only");
}

/// Answers one call.
fn peer(answer: impl FnOnce(Stream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a call");
        answer(Stream::from(stream));
        // More calls go unanswered.
        thread::sleep(support::DEADLINE);
    });
    format!("trunk+tcp:{address}")
}

#[test]
fn peers_that_are_no_relay_are_told_of() {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .expect("a socket");
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().expect("an address");
    rustix::net::bind(&socket, &any).expect("a port");
    let bound = TcpListener::from(socket);
    let to = format!("trunk+tcp:{}", bound.local_addr().expect("an address"));
    let said = looks(&["--to", &to]);
    said.fails("connect", "nobody listens there");
    said.has("ok", "pages", "");

    // As a QEMU does that knows no such bytes.
    let said = looks(&["--to", &peer(drop)]);
    said.fails("far relay", "does a relay listen there");
    let greeting = peer(|stream| {
        let _ = (&stream).write_all(b"SSH-2.0-OpenSSH_10.0\r\n");
        thread::sleep(support::DEADLINE);
    });
    looks(&["--to", &greeting]).fails("far relay", "");
    let silent = peer(|stream| {
        thread::sleep(support::DEADLINE);
        drop(stream);
    });
    looks(&["--to", &silent]).fails("far relay", "no answer within 4 s");
    let said = looks(&["--to", "trunk+tcp:nowhere.invalid:1"]);
    said.fails("resolve", "nowhere.invalid");
    assert!(
        said.checks("resolve")[0]
            .2
            .contains("getent ahosts nowhere.invalid")
    );
}

/// A relay from before there were visits refuses what it does not know.
#[test]
fn an_older_relay_is_a_warning() {
    let older = peer(|stream| {
        let mut receiver = PrefaceReceiver::default();
        let mut byte = [0];
        while let Ok(1) = stream.read_some(&mut byte) {
            if receiver.push(&mut &byte[..]).expect("a preface").is_some() {
                break;
            }
        }
        let words = "the preface needs extension 0x8005";
        let refusal = Refusal::new(RefusalCode::EXTENSION, words);
        let answer = Answer::Refused(refusal).encode().expect("an answer");
        (&stream).write_all(&answer).expect("a reader");
    });
    let said = looks(&["--to", &older]);
    assert_eq!(said.status, Some(0), "{}", said.all);
    said.has("warn", "far relay", "older");
}

#[test]
fn a_lack_of_descriptors_is_a_failure() {
    let script = format!(
        "ulimit -n 72 && exec {} doctor --json --compression none",
        program().display()
    );
    let ended = Multifd::spawn(Command::new("sh").args(["-c", &script])).end();
    let said = Said {
        status: ended.status.code(),
        all: serde_json::from_str(ended.stdout.trim()).expect("JSON"),
        stderr: ended.stderr,
    };
    said.fails("descriptors", "too few for 2 channels");
    assert!(said.checks("descriptors")[0].2.contains("LimitNOFILE=2048"));
}

#[test]
fn a_codec_that_is_not_there_is_a_failure() {
    let said = doctor(&["--compression", "qpl", "--accel", "qpl-hardware"]);
    if said.status == Some(0) {
        // This machine has an IAA.
        return said.has("ok", "accelerator", "IAA");
    }
    said.fails("accelerator", "qpl-hardware");
    assert!(said.checks("pages").is_empty());
}

#[test]
fn many_channels_pass() {
    let said = looks(&["--channels", "255"]);
    assert_eq!(said.status, Some(0), "{}", said.all);
    said.has("ok", "pages", "all arrived whole");
}

#[test]
fn what_is_typed_wrong_is_status_2() {
    for (args, words) in [
        (
            &["--to", "tcp:127.0.0.1:1"][..],
            "only a relay can be asked",
        ),
        (&["--link", "fast"], "1gbit"),
        (&["--channels", "0"], "--channels"),
        (&["--zstd-level", "3"], "--compression zstd"),
    ] {
        let ended = Multifd::start([&["doctor"], args].concat()).end();
        assert_eq!(ended.status.code(), Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(words), "{args:?}: {ended:?}");
    }
}

#[test]
fn a_signal_ends_it_and_nothing_stays() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(program());
    command.arg("doctor").env("TMPDIR", temporary.path());
    let mut doctor = Multifd::spawn(&mut command);
    // Its first line.
    doctor.result();
    let pid = rustix::process::Pid::from_raw(doctor.id() as i32).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let ended = doctor.end();
    assert_eq!(ended.status.code(), Some(130), "{ended:?}");
    assert!(ended.stderr.contains("SIGINT: ended before"), "{ended:?}");
    let left = support::files(temporary.path());
    assert!(left.is_empty(), "{left:?}");
}
