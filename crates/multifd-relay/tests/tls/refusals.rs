//! Who is refused, and what both ends say of it.

use std::io;
use std::thread;

use multifd_relay::tls::{ClientOptions, ServerOptions, TlsClient, TlsServer, TlsVersions};
use multifd_transport::{DialError, Stream};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::version::{TLS12, TLS13};

use crate::ends::{
    accept, client, connect, folders, hear, is, raw_client, raw_server, server, shake, tcp, words,
};
use crate::made::{BOTH, Ca, DAY, Folder, NOW, Pair, Spec};

/// What each end says when `client` calls `server`.
fn refused(server: &TlsServer, client: &TlsClient, name: &str) -> (io::Error, String) {
    let (accepted, connected) = shake(server, client, name);
    let at_server = accepted
        .map(|accepted| accepted.peer.to_string())
        .unwrap_err();
    (at_server, words(connected))
}

#[track_caller]
fn says(words: &str, parts: &[&str]) {
    for part in parts {
        assert!(words.contains(part), "no `{part}` in: {words}");
    }
}

#[test]
fn another_ca_s_client_is_refused() {
    let (_, server_folder, _) = folders();
    let other = Ca::new("another CA");
    // It trusts the server, so that only the server refuses.
    let ca = std::fs::read_to_string(server_folder.path().join("ca-cert.pem")).unwrap();
    let client_folder = Folder::new(&(ca + &other.pem())).with("client", &other.client());
    let (at_server, at_client) = refused(
        &server(&server_folder),
        &client(&client_folder),
        "dst.example",
    );
    assert!(is(&at_server, "UnknownCa"), "{at_server:?}");
    says(
        &at_server.to_string(),
        &[
            "client's certificate (CN src1, src1.example)",
            "/ca-cert.pem",
            "one CA at both ends",
        ],
    );
    says(
        &at_client,
        &["unknown_ca", "client-cert.pem", "one CA at both ends"],
    );
}

#[test]
fn another_ca_s_server_is_refused() {
    let (_, server_folder, _) = folders();
    let other = Ca::new("another CA");
    let client_folder = Folder::client(&other, &other.client());
    let (at_server, at_client) = refused(
        &server(&server_folder),
        &client(&client_folder),
        "dst.example",
    );
    assert!(is(&at_server, "PeerRefused"), "{at_server:?}");
    says(
        &at_server.to_string(),
        &["unknown_ca", "server-cert.pem (CN the server, dst.example"],
    );
    says(
        &at_client,
        &[
            "server's certificate (CN the server",
            "is not signed by a CA in",
        ],
    );
}

/// A client of rustls alone with this certificate calls a server of ours; the words of both.
fn raw_client_refused(server: &TlsServer, own: Option<&Pair>) -> (io::Error, String) {
    let (near, far) = tcp();
    thread::scope(|scope| {
        let accepted = scope.spawn(|| accept(server, far.into()));
        let said = hear(&mut raw_client(near, own, &[&TLS13])).unwrap_err();
        (
            accepted.join().unwrap().map(|_| ()).unwrap_err(),
            said.to_string(),
        )
    })
}

/// A client of ours calls a server of rustls alone with this certificate.
fn raw_server_refused(client: &TlsClient, own: &Pair) -> (DialError, String) {
    let (near, far) = tcp();
    thread::scope(|scope| {
        let heard = scope.spawn(move || hear(&mut raw_server(far, own, &[&TLS13], |_| {})));
        let error = connect(client, near.into(), "dst.example")
            .map(|_| ())
            .unwrap_err();
        (error, heard.join().unwrap().unwrap_err().to_string())
    })
}

#[test]
fn certificates_out_of_date_are_refused() {
    let (ca, server_folder, client_folder) = folders();
    for (times, word, alert) in [
        (-DAY..-3600, "has expired on 20", "CertificateExpired"),
        (3600..DAY, "is valid from 20", "CertificateExpired"),
    ] {
        let spec = |common_name| Spec {
            common_name,
            names: &["dst.example"],
            times: times.clone(),
            usages: BOTH,
        };
        let pair = ca.issue(&spec("late"));
        let (ours, theirs) = raw_client_refused(&server(&server_folder), Some(&pair));
        says(
            &ours.to_string(),
            &["client's certificate (CN late", word, " UTC", "clock"],
        );
        says(&theirs, &[alert]);
        let (ours, theirs) = raw_server_refused(&client(&client_folder), &pair);
        says(
            &ours.to_string(),
            &["server's certificate (CN late", word, " UTC"],
        );
        says(&theirs, &[alert]);
    }
}

#[test]
fn our_words_for_an_alert_name_our_own_certificate() {
    let (ca, _, client_folder) = folders();
    // The server's clock is wrong, so to speak: it says that a good certificate has expired.
    let (near, mut far) = tcp();
    let pair = ca.server();
    let peer = thread::spawn(move || {
        let mut peer = raw_server(far.try_clone().unwrap(), &pair, &[&TLS13], |_| {});
        while peer.conn.is_handshaking() {
            peer.conn.complete_io(&mut far).unwrap();
        }
        drop(peer);
    });
    let stream = connect(&client(&client_folder), near.into(), "dst.example").unwrap();
    peer.join().unwrap();
    let error = stream.read_some(&mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    says(
        &error.to_string(),
        &[
            "without close_notify right after the handshake",
            "see its log",
        ],
    );
}

#[test]
fn revoked_certificates_are_refused() {
    let (ca, server_folder, _) = folders();
    let (good, bad) = (ca.client(), ca.client());
    server_folder.put("ca-crl.pem", &ca.revoking(&[&bad], DAY));
    let tls = server(&server_folder);
    let good = Folder::client(&ca, &good);
    shake(&tls, &client(&good), "dst.example").0.unwrap();
    let bad = Folder::client(&ca, &bad);
    let (at_server, at_client) = refused(&tls, &client(&bad), "dst.example");
    assert!(is(&at_server, "Revoked"), "{at_server:?}");
    says(
        &at_server.to_string(),
        &["/ca-crl.pem revokes the client's certificate (CN src1"],
    );
    says(
        &at_client,
        &["certificate_revoked", "client-cert.pem", "make a new one"],
    );

    // The same in the other direction.
    let pair = ca.server();
    good.put("ca-crl.pem", &ca.revoking(&[&pair], DAY));
    let (at_client, at_server) = raw_server_refused(&client(&good), &pair);
    assert!(is(&at_client, "Revoked"), "{at_client:?}");
    says(&at_server, &["CertificateRevoked"]);
}

#[test]
fn a_list_of_revoked_certificates_that_is_too_old_or_another_ca_s_lets_nobody_in() {
    let (ca, server_folder, client_folder) = folders();
    server_folder.put("ca-crl.pem", &ca.revoking(&[], -60));
    let (at_server, at_client) = refused(
        &server(&server_folder),
        &client(&client_folder),
        "dst.example",
    );
    says(
        &at_server.to_string(),
        &["/ca-crl.pem was to be renewed before 20", "SIGHUP"],
    );
    says(&at_client, &["unknown_ca", "list of revoked certificates"]);

    server_folder.put("ca-crl.pem", &Ca::new("another CA").revoking(&[], DAY));
    let (at_server, _) = refused(
        &server(&server_folder),
        &client(&client_folder),
        "dst.example",
    );
    says(
        &at_server.to_string(),
        &["/ca-crl.pem does not cover the CA of the client's"],
    );
}

#[test]
fn a_server_of_another_name_is_refused() {
    let (_, server_folder, client_folder) = folders();
    let (server, client) = (server(&server_folder), client(&client_folder));
    for good in ["dst.example", "DST.example", "127.0.0.1"] {
        shake(&server, &client, good).1.unwrap();
    }
    for bad in ["other.example", "127.0.0.2", "::1"] {
        let (at_server, at_client) = refused(&server, &client, bad);
        says(
            &at_client,
            &[
                "CN the server, dst.example, 127.0.0.1",
                &format!("is not for `{bad}`"),
            ],
        );
        says(
            &at_server.to_string(),
            &["bad_certificate", "server-cert.pem (CN the server"],
        );
    }
    let (near, _far) = tcp();
    let error = connect(&client, near.into(), "no name").unwrap_err();
    says(
        &error.to_string(),
        &["`no name` is neither a host name nor an IP address"],
    );
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let (ca, server_folder, _) = folders();
    let folder = Folder::new(&ca.pem());
    let missing = TlsClient::open(folder.path(), ClientOptions::default()).unwrap_err();
    says(
        &missing.to_string(),
        &["/client-cert.pem is missing", "multifd tls init"],
    );
    let mut options = ClientOptions::default();
    options.needs_certificate = false;
    let client = TlsClient::open(folder.path(), options).unwrap();
    let (at_server, at_client) = refused(&server(&server_folder), &client, "dst.example");
    assert!(is(&at_server, "NoClientCertificate"), "{at_server:?}");
    says(
        &at_server.to_string(),
        &["client-cert.pem and client-key.pem"],
    );
    says(
        &at_client,
        &[
            "certificate_required",
            "client-cert.pem and client-key.pem into",
        ],
    );

    // QEMU's verify-peer=no.
    let mut options = ServerOptions::default();
    options.verify_peer = false;
    let open = TlsServer::open(server_folder.path(), options).unwrap();
    let accepted = shake(&open, &client, "dst.example").0.unwrap();
    assert_eq!(accepted.peer.to_string(), "no certificate");
    assert_eq!(accepted.peer.names().count(), 0);
}

#[test]
fn a_client_whose_name_is_not_allowed_is_refused() {
    let (_, server_folder, client_folder) = folders();
    let allowing = |patterns: &[&str]| {
        let mut options = ServerOptions::default();
        options.allowed_clients = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        TlsServer::open(server_folder.path(), options).unwrap()
    };
    let client = client(&client_folder);
    for patterns in [&["src1"][..], &["*.example"], &["other", "SRC*"], &["*"]] {
        let accepted = shake(&allowing(patterns), &client, "dst.example")
            .0
            .unwrap();
        assert_eq!(
            accepted.peer.names().collect::<Vec<_>>(),
            ["src1", "src1.example"]
        );
    }
    for patterns in [&["src2"][..], &["src", "*.example.org"], &[""]] {
        let (at_server, at_client) = refused(&allowing(patterns), &client, "dst.example");
        assert!(is(&at_server, "NameNotAllowed"), "{at_server:?}");
        says(
            &at_server.to_string(),
            &["client's certificate (CN src1, src1.example) is not allowed here"],
        );
        says(
            &at_client,
            &["access_denied", "client-cert.pem (CN src1, src1.example)"],
        );
    }
}

#[test]
fn a_certificate_for_another_purpose_is_refused() {
    let (ca, server_folder, client_folder) = folders();
    let only = |usages| {
        ca.issue(&Spec {
            common_name: "one-sided",
            names: &["dst.example"],
            times: NOW,
            usages,
        })
    };
    let server_s = only(&[ExtendedKeyUsagePurpose::ServerAuth]);
    let (ours, theirs) = raw_client_refused(&server(&server_folder), Some(&server_s));
    says(&ours.to_string(), &["does not allow a TLS client"]);
    says(&theirs, &["UnsupportedCertificate"]);
    let client_s = only(&[ExtendedKeyUsagePurpose::ClientAuth]);
    let (ours, _) = raw_server_refused(&client(&client_folder), &client_s);
    says(&ours.to_string(), &["does not allow a TLS server"]);
}

#[test]
fn an_old_version_is_refused_on_trunks_and_taken_from_qemus() {
    let (ca, server_folder, client_folder) = folders();
    let pair = ca.client();
    let (near, far) = tcp();
    let trunk = server(&server_folder);
    thread::scope(|scope| {
        let accepted = scope.spawn(|| accept(&trunk, far.into()));
        let said = hear(&mut raw_client(near, Some(&pair), &[&TLS12])).unwrap_err();
        let error = accepted.join().unwrap().map(|_| ()).unwrap_err();
        assert!(is(&error, "VersionTooOld"), "{error:?}");
        says(&error.to_string(), &["this end takes TLS 1.3"]);
        says(&said.to_string(), &["ProtocolVersion"]);
    });
    // And a client that wants 1.3 of an older server.
    let (near, far) = tcp();
    let server_pair = ca.server();
    let tls = client(&client_folder);
    thread::scope(|scope| {
        let heard = scope.spawn(|| hear(&mut raw_server(far, &server_pair, &[&TLS12], |_| {})));
        let error = connect(&tls, near.into(), "dst.example")
            .map(|_| ())
            .unwrap_err();
        says(&error.to_string(), &["TLS 1.3", "version"]);
        heard.join().unwrap().unwrap_err();
    });
    let mut options = ServerOptions::default();
    options.versions = TlsVersions::Tls12And13;
    let qemu = TlsServer::open(server_folder.path(), options).unwrap();
    for version in [&TLS12, &TLS13] {
        let (near, far) = tcp();
        thread::scope(|scope| {
            let accepted = scope.spawn(|| {
                let accepted = accept(&qemu, far.into()).unwrap();
                accepted.stream.write_all_of_two(b"he", b"llo").unwrap();
                accepted.stream.shutdown(std::net::Shutdown::Write).unwrap();
                accepted
            });
            let mut peer = raw_client(near, Some(&pair), &[version]);
            let mut text = String::new();
            std::io::Read::read_to_string(&mut peer, &mut text).unwrap();
            assert_eq!(text, "hello");
            let accepted = accepted.join().unwrap();
            let name = if version == &TLS12 {
                "TLSv1_2"
            } else {
                "TLSv1_3"
            };
            says(&accepted.protocol, &[name]);
        });
    }
}

#[test]
fn a_handshake_over_a_layer_is_none() {
    let (_, server_folder, _) = folders();
    let (near, _far) = crate::ends::pair();
    let stream: Stream = near;
    let error = accept(&server(&server_folder), stream)
        .map(|_| ())
        .unwrap_err();
    says(&error.to_string(), &["runs over a socket"]);
}
