//! Encrypted trunks: guests pass, and nobody else.

use super::super::*;

/// Certificates for a try, as the command makes them.
pub fn certificates(folder: &Path, more: &[&str]) -> std::path::PathBuf {
    let dir = folder.join("tls");
    let path = dir.to_str().expect("a path");
    let hosts = ["--host", "127.0.0.1", "--host", "localhost"];
    let args = [&["tls", "init", path], &hosts[..], more].concat();
    Multifd::start(args).end().well();
    dir
}

/// A pair whose trunk is encrypted, each end with certificates of its own.
fn encrypted(
    destination: &Address,
    far_dir: &Path,
    near_dir: &Path,
    far_more: &[&str],
) -> (Multifd, Multifd) {
    let text = |dir: &Path| dir.to_str().expect("a path").to_owned();
    let (far_dir, near_dir) = (text(far_dir), text(near_dir));
    let more = [&["--once", "--tls-dir", &far_dir], far_more].concat();
    let mut far = relay("trunk:127.0.0.1:0", &destination.to_string(), &more);
    let leg: LegAddress = (*far).address();
    assert!(leg.tls, "{leg}");
    let more = ["--once", "--name", "vm1", "--tls-dir", &near_dir];
    let near = relay("tcp:127.0.0.1:0", &leg.to_string(), &more);
    (near, far)
}

#[test]
fn a_guest_passes_through_an_encrypted_trunk() {
    for migration in both(long) {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = certificates(folder.path(), &[]);
        let destination = Destination::new(folder.path(), 2);
        let (mut near, far) = encrypted(&destination.address, &dir, &dir, &[]);
        let source = Source::begin(&near.address(), &migration);
        arrives(&destination, &source, &migration);
        for ended in [near.end(), far.end()] {
            assert!(ended.status.success(), "{ended:?}");
        }
    }
}

/// Whom an encrypted trunk does not take, and what both ends say of it.
#[test]
fn an_encrypted_trunk_takes_nobody_else() {
    let migration = &both(short)[1];
    let folder = tempfile::tempdir().expect("a folder");
    let other = tempfile::tempdir().expect("a folder");
    let ours = certificates(folder.path(), &["--client", "src1"]);
    let theirs = certificates(other.path(), &["--client", "src1"]);
    let cases: [(&Path, &[&str], &str); 4] = [
        (&theirs, &[], "certificate"),
        (&ours, &["--allow", "src2"], "src1"),
        (
            &ours,
            &["--allow", "src1=web-*"],
            "may not use the name vm1",
        ),
        (&ours, &["--allow", "src1=vm*"], ""),
    ];
    for (near_dir, far_more, words) in cases {
        let destinations = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(destinations.path(), 2);
        let (mut near, _far) = encrypted(&destination.address, &ours, near_dir, far_more);
        let source = Source::begin(&near.address(), migration);
        if words.is_empty() {
            arrives(&destination, &source, migration);
            near.end().well();
            continue;
        }
        source.wait_for_end();
        says(&near.end(), words);
        assert!(destination.seen().connections.is_empty(), "{words}");
    }
}

/// SIGHUP reads the certificates again, also where another folder has taken the place of theirs. A
/// relay keeps the right to read them in its sandbox.
#[test]
fn certificates_are_renewed_by_rename() {
    let migration = &both(short)[1];
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    std::fs::create_dir(&old).expect("a folder");
    std::fs::create_dir(&new).expect("a folder");
    let (old, new) = (certificates(&old, &[]), certificates(&new, &[]));
    let dir = folder.path().join("pki");
    std::fs::rename(old, &dir).expect("a folder");
    let sockets = format!("unix:{}", folder.path().join("{name}").display());
    let text = dir.to_str().expect("a path");
    let mut far = relay("trunk:127.0.0.1:0", &sockets, &["--tls-dir", text]);
    let leg: LegAddress = (*far).address();
    let pid = rustix::process::Pid::from_raw(far.id() as i32).expect("a process");
    // A file in the folder, then the folder.
    let key = dir.join("server-key.pem");
    std::fs::copy(&key, dir.join("next")).expect("a copy");
    std::fs::rename(dir.join("next"), &key).expect("a file");
    for renames_folder in [false, true] {
        if renames_folder {
            std::fs::rename(&dir, folder.path().join("gone")).expect("a folder");
            std::fs::rename(&new, &dir).expect("a folder");
        }
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it runs");
        while !far.complaint().contains("the certificates were reloaded") {}
        let address = Address::Unix(folder.path().join("vm1"));
        let destination = Destination::at(&address, 2, support::peers::Limits::default());
        let more = ["--once", "--name", "vm1", "--tls-dir", text];
        let mut near = relay("tcp:127.0.0.1:0", &leg.to_string(), &more);
        let source = Source::begin(&near.address(), migration);
        arrives(&destination, &source, migration);
        near.end().well();
        std::fs::remove_file(folder.path().join("vm1")).expect("a socket");
    }
}

/// What is in clear does not come in where all is to be encrypted, and the other way round.
#[test]
fn clear_and_encrypted_do_not_meet() {
    let migration = &both(short)[1];
    let folder = tempfile::tempdir().expect("a folder");
    let dir = certificates(folder.path(), &[]);
    let dir = dir.to_str().expect("a path");
    let destination = Destination::new(folder.path(), 2);
    let connect = destination.address.to_string();
    let mut far = relay("trunk:127.0.0.1:0", &connect, &["--tls-dir", dir]);
    let port = trunk_of(&mut far);
    let mut near = relay("tcp:127.0.0.1:0", &format!("trunk+{port}"), &["--once"]);
    let source = Source::begin(&near.address(), migration);
    source.wait_for_end();
    says(&near.end(), "this trunk is encrypted");
    let mut far = relay("trunk+tcp:127.0.0.1:0", &connect, &[]);
    let port = trunk_of(&mut far).to_string();
    let there = port.replace("tcp:", "trunk:");
    let mut near = relay("tcp:127.0.0.1:0", &there, &["--once", "--tls-dir", dir]);
    let source = Source::begin(&near.address(), migration);
    source.wait_for_end();
    says(&near.end(), "TLS");
    let line = far.complaint();
    assert!(line.contains("this address is in clear"), "{line}");
}
