//! Measures pages that are sent again: how fast differences are found, and how many bytes they take
//! beside the same pages without them.

mod heap;
mod redis;
mod sending;
mod speed;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use clap::Parser;
use multifd_bench::guests::{Guest, Kind, Spec};
use multifd_benches::PAGE_SIZE;
use multifd_codec::Settings;
use multifd_wire::Method;
use sending::{Image, Sender, measure};

/// Errors are messages for the person at the terminal.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Arguments {
    /// The program `multifd-bench`, which runs the model of Redis
    #[arg(long, value_name = "PROGRAM")]
    guest: Option<PathBuf>,
    /// Dirty rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds between two rounds
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Measure only what has this in its name: speed, heap, model, server
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let is_wanted = |name: &str| name.contains(&arguments.only);
    let pause = Duration::from_secs_f64(arguments.seconds);
    if is_wanted("speed") {
        speed::measure();
    }
    println!(
        "\nDirty rounds, bytes without and with differences ({} rounds):",
        arguments.rounds
    );
    if is_wanted("heap") {
        let mut heap = heap::Heap::new();
        let rounds = (0..=arguments.rounds).map(|_| heap.round()).collect();
        compare("heap", rounds)?;
    }
    if let (true, Some(program)) = (is_wanted("model"), &arguments.guest) {
        let spec = Spec::new(Kind::Redis, 256 << 20);
        let mut guest = Guest::start(Command::new(program).arg("guest"), &spec)?;
        let mut rounds = Vec::new();
        for _ in 0..=arguments.rounds {
            guest.pause()?;
            rounds.push(image(guest.memory())?);
            guest.resume()?;
            thread::sleep(pause);
        }
        guest.stop()?;
        compare("model of Redis", rounds)?;
    }
    if is_wanted("server") {
        match redis::Redis::start()? {
            Some(mut server) => {
                let rounds = server.rounds(arguments.rounds, pause)?;
                compare("redis-server", rounds)?;
            }
            None => println!("redis-server: not there; cargo xtask setup brings it"),
        }
    }
    Ok(())
}

fn image(memory: &File) -> Result<Image> {
    let mut bytes = vec![0; usize::try_from(memory.metadata()?.len())?];
    memory.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The same rounds in each method, without differences and with two budgets.
fn compare(name: &str, images: Vec<Image>) -> Result<()> {
    let used = images.last().map_or(0, |image| {
        let pages = image.chunks(PAGE_SIZE.bytes());
        pages.filter(|page| !multifd_codec::is_zero(page)).count()
    });
    let whole_budget = (used as u64 + 100) * (PAGE_SIZE.bytes() as u64 + 64);
    let settings = Settings::default();
    for method in [Method::Zstd, Method::Zlib, Method::None] {
        let mut senders = [None, Some(whole_budget), Some(whole_budget / 4)]
            .map(|budget| Sender::new(method, &settings, budget));
        let totals = measure(&images, &mut senders);
        let [plain, whole, quarter] = totals;
        println!(
            "{name:16} {method:5} {:9} pages {:>7.2} MB plain; budget 100 %: {:>7.2} MB, {:>5.2}x less, {:>4.1}x the speed; 25 %: {:>7.2} MB, {:>5.2}x less",
            plain.pages,
            plain.bytes as f64 / 1e6,
            whole.bytes as f64 / 1e6,
            plain.bytes as f64 / whole.bytes as f64,
            plain.time.as_secs_f64() / whole.time.as_secs_f64(),
            quarter.bytes as f64 / 1e6,
            plain.bytes as f64 / quarter.bytes as f64,
        );
        for (budget, sender) in ["100", "25"].iter().zip(&senders[1..]) {
            println!("    {budget:>3} %: {:?}", sender.counts());
        }
    }
    Ok(())
}
