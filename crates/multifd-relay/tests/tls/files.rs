//! Folders of certificates: what is wrong with them, and how they are read anew.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use multifd_relay::tls::{ClientOptions, ServerOptions, TlsClient, TlsServer};

use crate::ends::{client, folders, server, shake};
use crate::made::{BOTH, Ca, DAY, Folder, NOW, Spec};

#[track_caller]
fn opens_not(folder: &Folder, parts: &[&str]) {
    let error = TlsServer::open(folder.path(), ServerOptions::default())
        .unwrap_err()
        .to_string();
    for part in parts {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_what_to_do() {
    let ca = Ca::new("our CA");
    let pair = ca.server();
    let whole = || Folder::server(&ca, &pair);
    let empty = tempfile::tempdir().unwrap();
    let error = TlsServer::open(empty.path(), ServerOptions::default()).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("/ca-cert.pem is missing: `multifd tls init DIR"),
        "{said}"
    );
    for file in ["server-cert.pem", "server-key.pem"] {
        let folder = whole();
        fs::remove_file(folder.path().join(file)).unwrap();
        opens_not(&folder, &[file, "is missing", "certtool"]);
        fs::create_dir(folder.path().join(file)).unwrap();
        opens_not(&folder, &["cannot read", file, "it is no file"]);
    }
    let with = |file, text: &str| {
        let folder = whole();
        folder.put(file, text);
        folder
    };
    let no_certificate = "holds no certificate in PEM form but a private key";
    opens_not(
        &with("server-cert.pem", &pair.key),
        &["server-cert.pem", no_certificate],
    );
    opens_not(
        &with("ca-cert.pem", &pair.key),
        &["ca-cert.pem", no_certificate],
    );
    opens_not(
        &with("server-key.pem", &pair.certificate),
        &["server-key.pem holds no private key in PEM form but a certificate"],
    );
    opens_not(
        &with("ca-crl.pem", &pair.certificate),
        &["ca-crl.pem holds no list of revoked certificates in PEM form but a certificate"],
    );
    opens_not(&with("server-cert.pem", "hello"), &["but something else"]);
    opens_not(
        &with(
            "server-key.pem",
            &pair.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
        ),
        &["server-key.pem is encrypted", "openssl pkey"],
    );
    let cut = &pair.certificate[..pair.certificate.len() / 2];
    opens_not(
        &with("server-cert.pem", cut),
        &["server-cert.pem is broken", "copy it again"],
    );
    let changed = pair.certificate.replacen("MII", "MIA", 1);
    opens_not(&with("server-cert.pem", &changed), &["server-cert.pem"]);
    opens_not(&with("ca-cert.pem", &changed), &["ca-cert.pem"]);
    opens_not(
        &with("server-key.pem", &ca.server().key),
        &["server-key.pem is not the key of the certificate beside it"],
    );
    opens_not(
        &Folder::server(&Ca::new("another CA"), &pair),
        &["server-cert.pem is not signed by a CA in ca-cert.pem beside it"],
    );
    let issued = |times, usages| {
        Folder::server(
            &ca,
            &ca.issue(&Spec {
                common_name: "x",
                names: &["x.example"],
                times,
                usages,
            }),
        )
    };
    opens_not(
        &issued(-DAY..-60, BOTH),
        &["server-cert.pem has expired on 20", "make a new one"],
    );
    opens_not(
        &issued(60..DAY, BOTH),
        &["server-cert.pem is valid from 20"],
    );
    opens_not(
        &issued(NOW, &[rcgen::ExtendedKeyUsagePurpose::ClientAuth]),
        &[
            "server-cert.pem has an extended key usage",
            "tls_www_server",
        ],
    );
    let old = Ca::within("an old CA", -2 * DAY..-60);
    opens_not(
        &Folder::server(&old, &old.server()),
        &["ca-cert.pem has expired on 20"],
    );
}

#[test]
fn an_old_ca_beside_a_good_one_is_passed_over_with_a_warning() {
    let (ca, old) = (Ca::new("our CA"), Ca::within("an old CA", -2 * DAY..-60));
    let folder = Folder::new(&(old.pem() + &ca.pem())).with("server", &ca.server());
    let warnings = server(&folder).warnings().join("\n");
    assert!(warnings.contains("ca-cert.pem has expired"), "{warnings}");
}

#[test]
fn warnings_tell_of_keys_for_everyone_and_of_ends_soon() {
    let (_, server_folder, client_folder) = folders();
    let soon = |warnings: Vec<String>| {
        assert!(
            warnings.iter().any(|line| line.contains("expires on 20")),
            "{warnings:?}"
        );
        warnings.len()
    };
    let before = soon(server(&server_folder).warnings());
    soon(client(&client_folder).warnings());
    let key = server_folder.path().join("server-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = server(&server_folder).warnings();
    assert_eq!(warnings.len(), before + 1);
    let line = warnings
        .iter()
        .find(|line| line.contains("mode 644"))
        .unwrap();
    assert!(
        line.contains(&format!("chmod 600 {}", key.display())),
        "{line}"
    );
}

#[test]
fn files_are_read_anew_and_only_good_ones_are_taken() {
    let (ca, server_folder, client_folder) = folders();
    let (server, client) = (server(&server_folder), client(&client_folder));
    shake(&server, &client, "dst.example").0.unwrap();
    // A handshake from before goes on with the certificates from before.
    let (near, far) = crate::ends::tcp();
    let before = server.begin(far.into());

    let renamed = ca.issue(&Spec {
        common_name: "renamed",
        names: &["new.example"],
        times: NOW,
        usages: BOTH,
    });
    server_folder.put("server-cert.pem", &renamed.certificate);
    let error = server.reload().unwrap_err().to_string();
    assert!(error.contains("server-key.pem is not the key"), "{error}");
    shake(&server, &client, "dst.example").1.unwrap();
    server_folder.put("server-key.pem", &renamed.key);
    server.reload().unwrap();
    shake(&server, &client, "dst.example").1.unwrap_err();
    shake(&server, &client, "new.example").1.unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| crate::ends::drive(before).unwrap());
        crate::ends::connect(&client, near.into(), "dst.example").unwrap();
    });

    // What is revoked later is refused later.
    let revoked = ca.client();
    client_folder.put("client-cert.pem", &revoked.certificate);
    client_folder.put("client-key.pem", &revoked.key);
    client.reload().unwrap();
    shake(&server, &client, "new.example").0.unwrap();
    server_folder.put("ca-crl.pem", "nonsense");
    server.reload().unwrap_err();
    shake(&server, &client, "new.example").0.unwrap();
    server_folder.put("ca-crl.pem", &ca.revoking(&[&revoked], DAY));
    server.reload().unwrap();
    shake(&server, &client, "new.example").0.unwrap_err();
    fs::remove_file(client_folder.path().join("ca-cert.pem")).unwrap();
    client.reload().unwrap_err();
    TlsClient::open(client_folder.path(), ClientOptions::default()).unwrap_err();
}
