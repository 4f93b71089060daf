//! QEMU's own TLS at both ends, with certificates by `multifd tls init`, and ours between them.

use std::net::Shutdown;
use std::path::Path;
use std::thread;
use std::time::Duration;

use multifd_relay::tls::{
    ClientOptions, Encrypted, ServerOptions, TlsClient, TlsServer, TlsVersions,
};
use multifd_transport::{Listener, Stream};
use qemu_lab::{Config, Guest, Parameters, Qemu, QemuBinary};
use serde_json::json;

use crate::support::Multifd;

const LIMIT: Duration = Duration::from_secs(60);

/// Decrypts what a source QEMU sends, encrypts it for a destination QEMU, and back.
struct Between {
    server: TlsServer,
    client: TlsClient,
}

/// How a direction has ended.
type End = Result<u64, String>;

impl Between {
    fn open(certs: &Path, lenient_end: bool) -> Self {
        let mut server = ServerOptions::default();
        server.versions = TlsVersions::Tls12And13;
        server.allowed_clients = vec!["src.*".to_owned()];
        server.lenient_end = lenient_end;
        let mut client = ClientOptions::default();
        client.versions = TlsVersions::Tls12And13;
        client.lenient_end = lenient_end;
        Self {
            server: TlsServer::open(certs, server).unwrap(),
            client: TlsClient::open(certs, client).unwrap(),
        }
    }

    fn accept(&self, stream: Stream) -> Encrypted {
        let mut handshake = self.server.begin(stream);
        loop {
            let went_on = handshake.go_on();
            if let Some(accepted) = went_on.unwrap_or_else(|error| panic!("{error}")) {
                return accepted;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Both legs of one connection, one after the other: under TLS a destination takes its first
    /// connection for main.
    fn join(&self, stream: Stream, connect: &str) -> (Encrypted, Stream) {
        let from = self.accept(stream);
        let to = Stream::connect(&connect.parse().unwrap()).unwrap();
        let to = self.client.connect(to, "localhost", LIMIT, &|| false);
        (from, to.unwrap_or_else(|error| panic!("{error}")))
    }
}

/// Passes one connection on; gives the ends of both directions.
fn pass((from, to): (Encrypted, Stream)) -> (String, End, End) {
    let (there, back) = thread::scope(|scope| {
        let there = scope.spawn(|| copy(&from.stream, &to));
        let back = copy(&to, &from.stream);
        (there.join().unwrap(), back)
    });
    (format!("{} {}", from.peer, from.protocol), there, back)
}

/// Passes a direction on until its end, which is passed on as it was. A reader that has all it
/// needs may hang up: the rest is read to nowhere then, as a relay does.
fn copy(from: &Stream, to: &Stream) -> End {
    let mut bytes = vec![0; 1 << 20];
    let mut all = 0;
    let mut hung_up = false;
    loop {
        let count = match from.read_some(&mut bytes) {
            Ok(0) => {
                // The other end may have gone first.
                let _ = to.shutdown(Shutdown::Write);
                return Ok(all);
            }
            Ok(count) => count,
            // No destination says its end, and its source may still be read.
            Err(error) => return Err(format!("after {all} bytes: {error}")),
        };
        all += count as u64;
        match to.write_all_of_two(&bytes[..count], &[]) {
            _ if hung_up => {}
            Ok(()) => {}
            Err(error) if multifd_transport::hung_up(&error) => hung_up = true,
            Err(error) => {
                from.reset(None);
                return Err(format!("after {all} bytes: {error}"));
            }
        }
    }
}

fn with_tls(config: Config, certs: &Path, endpoint: &str, channels: u8) -> Qemu {
    let mut qemu = config.start().unwrap();
    let object = json!({
        "qom-type": "tls-creds-x509", "id": "tls0", "dir": certs, "endpoint": endpoint,
        "verify-peer": true,
    });
    qemu.execute("object-add", object).unwrap();
    let parameters = json!({"tls-creds": "tls0", "tls-hostname": "localhost"});
    qemu.execute("migrate-set-parameters", parameters).unwrap();
    qemu.set_migration(&Parameters::multifd(channels, "none"))
        .unwrap();
    qemu
}

fn make_certificates(certs: &Path) {
    let dir = certs.to_str().unwrap();
    let names = ["--host", "localhost", "--client", "src.example"];
    Multifd::start(["tls", "init", dir].into_iter().chain(names))
        .end()
        .well();
}

#[test]
fn qemus_with_tls_migrate_through_ours() {
    let place = tempfile::tempdir().unwrap();
    let certs = place.path().join("certs");
    make_certificates(&certs);
    for binary in QemuBinary::all() {
        for channels in [1, 4] {
            let guest = Guest::default();
            let mut source = with_tls(Config::new(&binary, &guest), &certs, "client", channels);
            let config = Config::new(&binary, &guest).incoming();
            let mut destination = with_tls(config, &certs, "server", channels);
            let connect = destination.listen("tcp:127.0.0.1:0").unwrap();
            let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
            let between = Between::open(&certs, binary.release() < (10, 0));
            source.migrate(&listener.address().to_string()).unwrap();
            let connections = thread::scope(|scope| {
                let mut passing = Vec::new();
                while passing.len() <= usize::from(channels) {
                    if let Some(stream) = listener.try_accept().unwrap() {
                        let legs = between.join(stream, &connect);
                        passing.push(scope.spawn(move || pass(legs)));
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                let status = source.wait_migration(LIMIT).unwrap();
                assert!(
                    status.is_completed(),
                    "{binary:?}: {status:?}, {}",
                    source.stderr()
                );
                destination.wait_migration(LIMIT).unwrap();
                destination.stop().unwrap();
                destination.check_guest().unwrap();
                drop((source, destination));
                let ends = passing.into_iter().map(|passing| passing.join().unwrap());
                ends.collect::<Vec<_>>()
            });
            println!("{:?}, {channels} channels:", binary.version());
            for (number, (peer, there, back)) in connections.into_iter().enumerate() {
                // QEMU 10.0 and later say the end of a multifd channel, and no QEMU that of main.
                let says_end = binary.release() >= (10, 0) && number > 0;
                assert!(!says_end || there.is_ok(), "{there:?}");
                println!("  {peer}: there {there:?}, back {back:?}");
                assert!(
                    peer.starts_with("CN src.example, src.example TLSv1_3"),
                    "{peer}"
                );
            }
        }
    }
}

/// A source reads nothing after the destination's word. A relay whose end it left unread would take
/// its close for that of a source that has not heard the word; so it was in up to a fifth of
/// all runs on a busy host.
#[test]
fn a_source_with_tls_of_its_own_hears_the_word() {
    let place = tempfile::tempdir().unwrap();
    let certs = place.path().join("certs");
    make_certificates(&certs);
    for binary in QemuBinary::all() {
        for turn in 0..4 {
            let guest = Guest::default();
            let mut source = with_tls(Config::new(&binary, &guest), &certs, "client", 2);
            let mut destination = Config::new(&binary, &guest).incoming().start().unwrap();
            let mut parameters = Parameters::multifd(2, "none");
            parameters.return_path = true;
            source.set_migration(&parameters).unwrap();
            destination.set_migration(&parameters).unwrap();
            let socket = place.path().join(format!("{:?}-{turn}", binary.release()));
            let connect = format!("unix:{}", socket.display());
            destination.listen(&connect).unwrap();
            let legs = ["--listen", "tls:127.0.0.1:0", "--connect", &connect];
            let certs = ["--tls-dir", certs.to_str().unwrap()];
            let options = ["relay", "--once", "--json"];
            let all = options.into_iter().chain(legs).chain(certs);
            let mut relay = Multifd::start(all);
            let listens: String = testkit::process::Tested::address(&mut relay);
            source.migrate(&listens.replace("tls:", "tcp:")).unwrap();
            let status = source.wait_migration(LIMIT).unwrap();
            assert!(status.is_completed(), "{binary:?}: {status:?}");
            destination.wait_migration(LIMIT).unwrap();
            let report = relay.end().well();
            assert!(report.contains("\"confirmed\":true"), "{report}");
        }
    }
}
