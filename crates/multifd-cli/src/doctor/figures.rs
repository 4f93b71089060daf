//! What the made migrations have shown, in figures and in words.

use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::{MAX_PAYLOAD_BYTES, Pages};
use multifd_relay::relay::Waits;
use multifd_wire::{Method, PageSize};
use serde::Serialize;

use super::check::Check;
use super::guest::{Memory, PAGE_BYTES};
use super::way::Measured;
use crate::codec::Codec;
use crate::say;

/// The pages of one packet of the codec's measurement, as QEMU has them.
const PACKET_PAGES: u64 = 128;

/// From this part of its time on, all of this host's processors count as busy.
const BUSY: f64 = 0.85;

/// Measured on this host.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    pub(super) channels: u8,
    pub(super) processors: usize,
    /// Whether the trunk was encrypted.
    pub(super) tls: bool,
    /// The codec alone, on all processors.
    pub(super) codec: Option<CodecRates>,
    /// The whole way, by method.
    pub(super) runs: Vec<Run>,
    /// Pages that were sent again.
    pub(super) again: Option<Again>,
}

/// Of the codec alone.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct CodecRates {
    pub(super) method: &'static str,
    pub(super) compress_bytes_per_second: f64,
    pub(super) decompress_bytes_per_second: f64,
}

/// The whole way with one method.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    pub(super) method: &'static str,
    pub(super) pages: u64,
    pub(super) pages_per_second: f64,
    /// Of the guest's memory.
    pub(super) bytes_per_second: f64,
    pub(super) ratio: f64,
    /// The rate of a link that is full at this rate of pages.
    pub(super) fills_bits_per_second: f64,
    /// With --link.
    pub(super) link_pages_per_second: Option<f64>,
    pub(super) processors_used: f64,
    pub(super) source_relay: Shares,
    pub(super) destination_relay: Shares,
    pub(super) limit: String,
}

/// Where the time of a relay's channels went, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Shares {
    /// Reading, and waiting for bytes.
    pub(super) reads: f64,
    /// Codec, digest and TLS.
    pub(super) computes: f64,
    /// Writing, and waiting for the network or the peer.
    pub(super) writes: f64,
    /// Waiting for other channels.
    pub(super) channels: f64,
}

/// Pages that are sent again.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Again {
    pub(super) pages_per_second: f64,
    /// The part that went as differences.
    pub(super) differences_percent: f64,
    /// Bytes of such a difference, before compression.
    pub(super) bytes_per_difference: f64,
}

impl Shares {
    fn of(waits: &Waits) -> Self {
        let total = waits.total().as_secs_f64().max(1e-9);
        let part = |part: Duration| say::rounded(part.as_secs_f64() / total * 100.0, 1);
        Self {
            reads: part(waits.source),
            computes: part(waits.codec),
            writes: part(waits.network.saturating_add(waits.destination)),
            channels: part(waits.channels),
        }
    }
}

impl Run {
    pub(super) fn new(measured: &Measured, link: Option<f64>, processors: usize) -> Self {
        let pages = measured.pages_per_second();
        let bits_per_page = measured.bytes_per_page() * 8.0;
        let (near, far) = (Shares::of(&measured.near), Shares::of(&measured.far));
        let used = measured.cpu.as_secs_f64() / measured.took.as_secs_f64().max(1e-9);
        Self {
            method: name(measured.method),
            pages: measured.arrived.first,
            pages_per_second: pages.round(),
            bytes_per_second: (pages * PAGE_BYTES as f64).round(),
            ratio: say::rounded(measured.ratio(), 2),
            fills_bits_per_second: (pages * bits_per_page).round(),
            link_pages_per_second: link.map(|link| pages.min(link / bits_per_page).round()),
            processors_used: say::rounded(used, 2),
            source_relay: near,
            destination_relay: far,
            limit: limit(&near, &far, used, processors),
        }
    }

    fn label(&self) -> &'static str {
        match self.method {
            "none" => "plain pages",
            method => method,
        }
    }

    /// One line with the rates.
    pub(super) fn line(&self) -> String {
        let link = match self.link_pages_per_second {
            Some(pages) => format!("; over your link {} pages/s", thousands(pages)),
            None => String::new(),
        };
        format!(
            "{}: {} pages/s, {} MB/s of memory at {}:1; fills a link of {}{link}",
            self.label(),
            thousands(self.pages_per_second),
            thousands(self.bytes_per_second / 1e6),
            self.ratio,
            bits(self.fills_bits_per_second)
        )
    }

    /// One line with the stages.
    pub(super) fn stages(&self) -> String {
        let shares = |shares: &Shares| {
            format!(
                "reads {:.0} %, computes {:.0} %, writes {:.0} %",
                shares.reads, shares.computes, shares.writes
            )
        };
        format!(
            "source's relay: {}; destination's relay: {}",
            shares(&self.source_relay),
            shares(&self.destination_relay)
        )
    }
}

/// The stage that the others wait for.
fn limit(near: &Shares, far: &Shares, used: f64, processors: usize) -> String {
    let most = |shares: &Shares, part: f64| {
        [shares.reads, shares.computes, shares.writes]
            .into_iter()
            .all(|other| part >= other)
    };
    let stage = if most(near, near.computes) {
        "compression, digest and TLS at the source's relay"
    } else if most(near, near.reads) {
        "reading from the source, which is made here: the relays could do more"
    } else if most(far, far.computes) {
        "decompression, digest and TLS at the destination's relay"
    } else if most(far, far.writes) {
        "writing to the destination"
    } else {
        "the way between the relays"
    };
    let used_words = format!("{} of {processors} processors used", say::rounded(used, 1));
    match used >= BUSY * processors as f64 {
        true => format!("{stage} ({used_words}, by both ends: two hosts do more than this)"),
        false => format!("{stage} ({used_words})"),
    }
}

/// Whether this host fills the link that the operator says there is.
pub(super) fn judge_link(runs: &[Run], link: f64) -> Option<Check> {
    const NAME: &str = "link";
    let best = runs.iter().max_by(|a, b| {
        let pages = |run: &Run| run.link_pages_per_second.unwrap_or_default();
        pages(a).total_cmp(&pages(b))
    })?;
    let pages = best.link_pages_per_second.unwrap_or_default();
    let found = format!(
        "over {} about {} pages/s, {} MB/s of memory, with {}",
        bits(link),
        thousands(pages),
        thousands(pages * PAGE_BYTES as f64 / 1e6),
        best.label()
    );
    if best.fills_bits_per_second >= link {
        return Some(Check::ok(NAME, format!("{found}: the link is the limit")));
    }
    let advice = match best.method {
        "none" => "give it more processors, or take more --channels (multifd-channels)",
        _ => {
            "give it more processors, take more --channels (multifd-channels), or compress less: \
              --compression auto or none"
        }
    };
    Some(Check::warn(
        NAME,
        format!(
            "{found}: this host is the limit, it fills {} of it",
            bits(best.fills_bits_per_second)
        ),
        advice,
    ))
}

/// Compresses and decompresses on all processors for `time` each. `None` without a codec.
pub(super) fn codec_rates(
    codec: &Codec,
    memory: &Memory,
    processors: usize,
    time: Duration,
) -> Option<CodecRates> {
    if codec.method == Method::None {
        return None;
    }
    let each = thread::scope(|scope| {
        let threads: Vec<_> = (0..processors as u64)
            .map(|index| scope.spawn(move || one_codec(codec, memory, index, time)))
            .collect();
        let rates = threads.into_iter().map(|thread| thread.join().ok()?);
        rates.collect::<Option<Vec<_>>>()
    })?;
    let (compress, decompress) = each
        .into_iter()
        .fold((0.0, 0.0), |sum, rates| (sum.0 + rates.0, sum.1 + rates.1));
    Some(CodecRates {
        method: name(codec.method),
        compress_bytes_per_second: f64::round(compress),
        decompress_bytes_per_second: f64::round(decompress),
    })
}

/// One channel's stream of packets.
fn one_codec(codec: &Codec, memory: &Memory, index: u64, time: Duration) -> Option<(f64, f64)> {
    let mut encoder = multifd_codec::encoder(codec.method, &codec.settings).ok()?;
    let mut decoder = multifd_codec::decoder(codec.method, &codec.settings).ok()?;
    let mut payloads = Vec::new();
    let (mut pages, mut spent) = (Vec::new(), Duration::ZERO);
    let mut packet = index << 20;
    let begun = Instant::now();
    // A stream has to be decoded in its order, so all of it is kept: little enough.
    while begun.elapsed() < time || payloads.is_empty() {
        pages.clear();
        for page in 0..PACKET_PAGES {
            let number = packet.wrapping_mul(PACKET_PAGES).wrapping_add(page);
            memory.append(number, 0, &mut pages);
        }
        packet = packet.wrapping_add(1);
        let mut payload = Vec::with_capacity(MAX_PAYLOAD_BYTES / 4);
        let begun = Instant::now();
        let contents = Pages::private(&pages, PageSize::K4).ok()?;
        encoder.encode(&contents, &mut payload).ok()?;
        spent += begun.elapsed();
        payload.shrink_to_fit();
        payloads.push(payload);
    }
    let compressed = (payloads.len() * pages.len()) as f64 / spent.as_secs_f64().max(1e-9);
    let begun = Instant::now();
    let mut count = 0_usize;
    for payload in &payloads {
        if count > 0 && begun.elapsed() >= time {
            break;
        }
        decoder.decode(payload, PageSize::K4, &mut pages).ok()?;
        count += 1;
    }
    let spent = begun.elapsed().as_secs_f64().max(1e-9);
    Some((compressed, (count * pages.len()) as f64 / spent))
}

impl Figures {
    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let trunk = match self.tls {
            true => "an encrypted trunk",
            false => "a trunk in clear",
        };
        let mut lines = vec![format!(
            "measured here, where one process is source, both relays and destination ({} channels, \
             {trunk}):",
            self.channels
        )];
        for run in &self.runs {
            lines.push(format!("  {}", run.line()));
            lines.push(format!("    {}", run.stages()));
            lines.push(format!("    limit: {}", run.limit));
        }
        if let Some(again) = &self.again {
            lines.push(format!(
                "  pages sent again with few changes: {} pages/s; {} % went as differences of {} \
                 bytes",
                thousands(again.pages_per_second),
                again.differences_percent,
                again.bytes_per_difference
            ));
        }
        if let Some(codec) = &self.codec {
            lines.push(format!(
                "  {} alone on {} processors: compresses {} MB/s, decompresses {} MB/s",
                codec.method,
                self.processors,
                thousands(codec.compress_bytes_per_second / 1e6),
                thousands(codec.decompress_bytes_per_second / 1e6)
            ));
        }
        lines
    }
}

impl Again {
    pub(super) fn new(measured: &Measured) -> Option<Self> {
        let counts = measured.differences?;
        let again = measured.arrived.again.max(1) as f64;
        let differences = counts.differences as f64;
        Some(Self {
            pages_per_second: measured.again_per_second().round(),
            differences_percent: say::rounded((differences / again * 100.0).min(100.0), 1),
            bytes_per_difference: say::rounded(counts.area_bytes as f64 / differences.max(1.0), 1),
        })
    }
}

/// The word on a command line.
fn name(method: Method) -> &'static str {
    match method {
        Method::None => "none",
        Method::Zlib => "zlib",
        Method::Zstd => "zstd",
        Method::Qpl => "qpl",
        Method::Canned => "canned",
        _ => "other",
    }
}

/// Bits a second, short.
pub(super) fn bits(rate: f64) -> String {
    match rate >= 1e9 {
        true => format!("{} Gbit/s", say::rounded(rate / 1e9, 1)),
        false => format!("{} Mbit/s", say::rounded(rate / 1e6, 0)),
    }
}

/// A number with commas.
pub(super) fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (number, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (1000.0, "1,000"),
            (1234567.8, "1,234,568"),
        ] {
            assert_eq!(thousands(number), text);
        }
        assert_eq!(bits(2.5e9), "2.5 Gbit/s");
        assert_eq!(bits(8e8), "800 Mbit/s");
    }

    fn run(method: &'static str, pages: f64, bytes_per_page: f64, link: f64) -> Run {
        Run {
            method,
            pages: 1,
            pages_per_second: pages,
            bytes_per_second: pages * 4096.0,
            ratio: 4096.0 / bytes_per_page,
            fills_bits_per_second: pages * bytes_per_page * 8.0,
            link_pages_per_second: Some(pages.min(link / bytes_per_page / 8.0)),
            processors_used: 1.0,
            source_relay: Shares::default(),
            destination_relay: Shares::default(),
            limit: String::new(),
        }
    }

    #[test]
    fn the_better_of_two_methods_is_named_with_its_limit() {
        let runs = |link| {
            [
                run("none", 200_000.0, 4096.0, link),
                run("zstd", 100_000.0, 2048.0, link),
            ]
        };
        let judge = |link| judge_link(&runs(link), link).unwrap();
        // 1 Gbit/s: 30,518 plain pages, 61,035 compressed ones.
        let check = judge(1e9);
        assert_eq!(check.state, State::Ok);
        assert!(check.found.contains("61,035 pages/s"), "{check}");
        // 5 Gbit/s: 152,588 plain pages, and no more than 100,000 compressed ones.
        let check = judge(5e9);
        assert_eq!(check.state, State::Ok);
        assert!(check.found.contains("plain pages: the link"), "{check}");
        let check = judge(1e11);
        assert_eq!(check.state, State::Warn);
        assert!(check.found.contains("6.6 Gbit/s of it"), "{check}");
    }

    #[test]
    fn the_stage_that_the_others_wait_for_is_the_limit() {
        let shares = |reads, computes, writes| Shares {
            reads,
            computes,
            writes,
            channels: 0.0,
        };
        for (near, far, word) in [
            (
                shares(10.0, 80.0, 10.0),
                shares(80.0, 10.0, 10.0),
                "compression",
            ),
            (
                shares(80.0, 10.0, 10.0),
                shares(80.0, 10.0, 10.0),
                "reading",
            ),
            (
                shares(10.0, 10.0, 80.0),
                shares(10.0, 80.0, 10.0),
                "decompression",
            ),
            (
                shares(10.0, 10.0, 80.0),
                shares(10.0, 10.0, 80.0),
                "writing",
            ),
            (
                shares(10.0, 10.0, 80.0),
                shares(80.0, 10.0, 10.0),
                "the way",
            ),
        ] {
            let told = limit(&near, &far, 1.0, 8);
            assert!(told.starts_with(word), "{told}");
            assert!(!told.contains("by both ends"));
            assert!(limit(&near, &far, 7.9, 8).contains("by both ends"));
        }
    }
}
