//! The cost of TLS: one connection, one direction, writes of 1 MiB, plain and encrypted in turns.
//!
//! Prints for each the rate, and how much each end carries in a second of one processor.
//!
//!     cargo run --release -p multifd-relay --example tls_throughput

use std::error::Error;
use std::fs;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use multifd_relay::tls::{ClientOptions, ServerOptions, TlsClient, TlsServer};
use multifd_transport::Stream;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const BYTES: usize = 2 << 30;
const ROUNDS: usize = 3;

fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    make(dir.path())?;
    let server = TlsServer::open(dir.path(), ServerOptions::default())?;
    let client = TlsClient::open(dir.path(), ClientOptions::default())?;
    for _ in 0..ROUNDS {
        for over in ["unix", "tcp"] {
            let (near, far) = pair(over)?;
            run(&format!("{over} plain"), &near, &far)?;
            let (near, far) = pair(over)?;
            let (near, far, protocol) = thread::scope(|scope| -> Result<_> {
                let accepted = scope.spawn(|| {
                    let mut handshake = server.begin(far);
                    loop {
                        if let Some(accepted) = handshake.go_on()? {
                            return Ok::<_, std::io::Error>(accepted);
                        }
                        thread::sleep(Duration::from_millis(1));
                    }
                });
                let near = client.connect(near, "localhost", Duration::from_secs(5), &|| false)?;
                let accepted = accepted.join().map_err(|_| "the server has panicked")??;
                Ok((near, accepted.stream, accepted.protocol))
            })?;
            run(&format!("{over} {protocol}"), &near, &far)?;
        }
    }
    Ok(())
}

fn run(name: &str, near: &Stream, far: &Stream) -> Result<()> {
    let piece: Vec<u8> = (0..1 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let start = Instant::now();
    let (written, read) = thread::scope(|scope| -> Result<_> {
        let writer = scope.spawn(|| -> Result<f64> {
            for _ in 0..BYTES / piece.len() {
                near.write_all_of_two(&[], &piece)?;
            }
            near.shutdown(Shutdown::Write)?;
            cpu()
        });
        let reader = scope.spawn(|| -> Result<f64> {
            let mut bytes = vec![0; 1 << 20];
            let mut all = 0;
            loop {
                match far.read_some(&mut bytes)? {
                    0 => break,
                    count => all += count,
                }
            }
            assert_eq!(all, BYTES);
            cpu()
        });
        let failed = |_| "a thread has panicked";
        Ok((
            writer.join().map_err(failed)??,
            reader.join().map_err(failed)??,
        ))
    })?;
    let rate = |seconds: f64| BYTES as f64 / 1e6 / seconds;
    println!(
        "{name:40} {:6.0} MB/s; by processor second: writer {:6.0} MB, reader {:6.0} MB, both {:6.0} MB",
        rate(start.elapsed().as_secs_f64()),
        rate(written),
        rate(read),
        rate(written + read)
    );
    Ok(())
}

/// Seconds that this thread has computed.
fn cpu() -> Result<f64> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = stat.split(' ').next().ok_or("no time")?;
    Ok(first.parse::<f64>()? / 1e9)
}

fn pair(over: &str) -> Result<(Stream, Stream)> {
    if over == "unix" {
        let (near, far) = UnixStream::pair()?;
        return Ok((near.into(), far.into()));
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    near.set_nodelay(true)?;
    Ok((near.into(), listener.accept()?.0.into()))
}

fn make(dir: &std::path::Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "a CA");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(dir.join("ca-cert.pem"), ca.pem())?;
    for role in ["server", "client"] {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec!["localhost".to_owned()])?;
        fs::write(
            dir.join(format!("{role}-cert.pem")),
            params.signed_by(&key, &ca)?.pem(),
        )?;
        fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem())?;
    }
    Ok(())
}
