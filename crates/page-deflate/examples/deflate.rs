//! Measures this crate beside the C zlib on files of concatenated 4 KiB pages, or on made-up ones.
//!
//! `cargo run --release -p page-deflate --example deflate -- [--rounds N] [--packets N] [FILE...]`
//!
//! All contenders run interleaved, one packet stream per round each; printed are medians and the
//! spread between the quarter points. Pages of zeros are left out, as a sender leaves them out.

use std::time::{Duration, Instant};

use page_deflate::{Deflater, Effort, StreamInflater, WindowSize};
use testkit::pages::{Random, packet};
use testkit::zlib;

const PAGE: usize = 4096;
const PACKET: usize = 128 * PAGE;

/// One way to make a stream: a name, and what makes the packets of one whole stream.
struct Encoder {
    name: String,
    run: Box<Stream>,
}

type Stream = dyn FnMut(&[&[u8]], &mut [Vec<u8>]);

fn encoders() -> Vec<Encoder> {
    let mut encoders = vec![Encoder {
        name: "zlib-1".into(),
        run: Box::new(|packets, out| {
            let mut deflate = zlib::Deflate::new(1, 15);
            for (packet, out) in packets.iter().zip(out) {
                out.clear();
                deflate.packet(packet, PAGE, out);
            }
        }),
    }];
    for window in [WindowSize::ThirtyTwoKiB, WindowSize::FourKiB] {
        for effort in Effort::ALL {
            encoders.push(Encoder {
                name: format!("{effort} {window}"),
                run: Box::new(move |packets, out| {
                    let mut deflate = Deflater::new(window, effort);
                    let mut header = &window.zlib_header()[..];
                    for (packet, out) in packets.iter().zip(out) {
                        out.clear();
                        out.extend(std::mem::take(&mut header));
                        deflate.compress(packet, out);
                    }
                }),
            });
        }
    }
    encoders
}

fn main() {
    let mut files = Vec::new();
    let (mut rounds, mut limit) = (7, 64);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).expect("a number");
        match arg.as_str() {
            "--rounds" => rounds = number(),
            "--packets" => limit = number(),
            _ => files.push(arg),
        }
    }
    if files.is_empty() {
        let pages = packet(&mut Random::new(1), 8 * 128, PAGE);
        measure("made-up pages", pages, rounds, limit);
    }
    for file in files {
        let pages = std::fs::read(&file).expect("a file of pages");
        measure(&file, pages, rounds, limit);
    }
}

fn measure(name: &str, mut bytes: Vec<u8>, rounds: usize, limit: usize) {
    let mut kept = 0;
    for page in 0..bytes.len() / PAGE {
        let page = page * PAGE..(page + 1) * PAGE;
        if bytes[page.clone()].iter().any(|&byte| byte != 0) {
            bytes.copy_within(page, kept);
            kept += PAGE;
        }
    }
    let all: Vec<&[u8]> = bytes[..kept].chunks_exact(PACKET).collect();
    let step = all.len().div_ceil(limit).max(1);
    let packets: Vec<&[u8]> = all.into_iter().step_by(step).collect();
    let total = packets.len() * PACKET;
    println!("{name}: {} packets of 128 pages", packets.len());

    let mut encoders = encoders();
    let mut streams = vec![vec![Vec::new(); packets.len()]; encoders.len()];
    let mut encode = vec![Vec::new(); encoders.len()];
    let mut decode_zlib = vec![Vec::new(); encoders.len()];
    let mut decode_own = vec![Vec::new(); encoders.len()];
    let mut pages = vec![0; PACKET];
    for round in 0..rounds {
        for (i, encoder) in encoders.iter_mut().enumerate() {
            let start = Instant::now();
            (encoder.run)(&packets, &mut streams[i]);
            encode[i].push(start.elapsed());

            let mut inflate = zlib::Inflate::new(15);
            let mut time = Duration::ZERO;
            for (payload, packet) in streams[i].iter().zip(&packets) {
                let start = Instant::now();
                let good = inflate.packet(payload, PAGE, &mut pages);
                time += start.elapsed();
                if round == 0 {
                    assert!(
                        good && pages == *packet,
                        "{}: zlib reads something else",
                        encoder.name
                    );
                }
            }
            decode_zlib[i].push(time);

            let mut inflate = StreamInflater::new();
            let mut time = Duration::ZERO;
            for (payload, packet) in streams[i].iter().zip(&packets) {
                let start = Instant::now();
                let outcome = inflate.inflate(payload, &mut pages);
                time += start.elapsed();
                if round == 0 {
                    assert_eq!(outcome, Ok(()), "{}", encoder.name);
                    assert!(pages == *packet, "{}: we read something else", encoder.name);
                }
            }
            decode_own[i].push(time);
        }
    }

    let mbps = |times: &mut Vec<Duration>| {
        times.sort();
        let speed = |time: Duration| total as f64 / time.as_secs_f64() / 1e6;
        let at = |quarter: usize| speed(times[(times.len() - 1) * quarter / 4]);
        (at(2), at(1) - at(3))
    };
    println!(
        "{:<24} {:>7} {:>5} {:>6} {:>6} {:>6} | {:>7} {:>5} {:>7} {:>5} {:>6}",
        "", "encode", "+-", "x", "ratio", "%", "inflate", "+-", "own", "+-", "x"
    );
    let (zlib_speed, _) = mbps(&mut encode[0]);
    let (zlib_decode, _) = mbps(&mut decode_zlib[0]);
    let ratio =
        |stream: &[Vec<u8>]| total as f64 / stream.iter().map(Vec::len).sum::<usize>() as f64;
    for (i, encoder) in encoders.iter().enumerate() {
        let (speed, spread) = mbps(&mut encode[i]);
        let (inflate, inflate_spread) = mbps(&mut decode_zlib[i]);
        let (own, own_spread) = mbps(&mut decode_own[i]);
        println!(
            "{:<24} {speed:>7.0} {spread:>5.0} {:>6.2} {:>6.3} {:>6.1} | {inflate:>7.0} {inflate_spread:>5.0} {own:>7.0} {own_spread:>5.0} {:>6.2}",
            encoder.name,
            speed / zlib_speed,
            ratio(&streams[i]),
            100.0 * ratio(&streams[i]) / ratio(&streams[0]),
            own / zlib_decode,
        );
    }
}
