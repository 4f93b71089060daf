//! `multifd tls init`: the files it makes are taken by both ends, and none is overwritten.
#![cfg(feature = "tls")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use multifd_relay::tls::{ClientOptions, ServerOptions, TlsClient, TlsServer};
use support::Multifd;

fn files(dir: &Path) -> BTreeMap<String, (u32, String)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            let text = fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), (mode, text))
        })
        .collect()
}

#[test]
fn both_ends_take_the_files() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("certs");
    let path = dir.to_str().unwrap();
    let init = [
        "tls",
        "init",
        path,
        "--host",
        "dst.example",
        "--host",
        "192.0.2.2",
    ];
    let said = Multifd::start(init).end().well();
    for part in [
        "365 days",
        "server: dst.example, 192.0.2.2",
        "ca-key.pem",
        "endpoint=server",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let made = files(&dir);
    let modes: Vec<_> = made
        .iter()
        .map(|(name, (mode, _))| (name.as_str(), *mode))
        .collect();
    assert_eq!(
        modes,
        [
            ("ca-cert.pem", 0o644),
            ("ca-key.pem", 0o600),
            ("client-cert.pem", 0o644),
            ("client-key.pem", 0o600),
            ("server-cert.pem", 0o644),
            ("server-key.pem", 0o600),
        ]
    );
    assert_eq!(
        fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
        0o700
    );

    let server = TlsServer::open(&dir, ServerOptions::default()).unwrap();
    let client = TlsClient::open(&dir, ClientOptions::default()).unwrap();
    assert_eq!(server.warnings().len() + client.warnings().len(), 0);
    for (name, fits) in [
        ("dst.example", true),
        ("192.0.2.2", true),
        ("192.0.2.3", false),
    ] {
        let (near, far) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let accepted = scope.spawn(|| {
                let mut handshake = server.begin(far.into());
                loop {
                    if let Some(accepted) = handshake.go_on()? {
                        return Ok(accepted.peer.to_string());
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let connected = client.connect(near.into(), name, Duration::from_secs(10), &|| false);
            let accepted: std::io::Result<String> = accepted.join().unwrap();
            assert_eq!(connected.is_ok(), fits, "{connected:?}");
            if fits {
                assert_eq!(accepted.unwrap(), "CN multifd-client, multifd-client");
            }
        });
    }

    // A second time changes nothing.
    let again = Multifd::start(init).end();
    assert_eq!(again.status.code(), Some(1));
    assert!(
        again.stderr.contains("certs/ca-cert.pem exists"),
        "{}",
        again.stderr
    );
    assert_eq!(files(&dir), made);
    fs::remove_file(dir.join("ca-cert.pem")).unwrap();
    let again = Multifd::start(init).end();
    assert!(
        again.stderr.contains("certs/ca-key.pem exists"),
        "{}",
        again.stderr
    );
    assert!(!dir.join("ca-cert.pem").exists(), "all files or none");
}

#[test]
fn what_is_wrong_is_said() {
    for (args, says) in [
        (&["x"][..], "--host <NAME>"),
        (
            &["x", "--host", "tcp:dst:4444"],
            "an IP address without port",
        ),
        (&["x", "--host", "dst", "--days", "0"], "--days"),
        (
            &["x", "--host", "dst", "--client", ""],
            "1 to 64 ASCII characters",
        ),
    ] {
        let ended = Multifd::start(["tls", "init"].iter().chain(args)).end();
        assert_eq!(ended.status.code(), Some(2), "{args:?}");
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
    }
    let ended = Multifd::start(["tls", "init", "/no/such/folder", "--host", "dst"]).end();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.stderr.contains("cannot create /no/such/folder"),
        "{}",
        ended.stderr
    );
    for args in [&["tls", "--help"][..], &["tls", "init", "--help"]] {
        let help = Multifd::start(args).end().well();
        assert!(help.lines().count() <= 24, "{help}");
        assert!(help.lines().all(|line| line.len() <= 120), "{help}");
    }
}
