//! What a machine's processors are worth to one channel with several streams, beside as many
//! channels as there are processors, which have nothing to do with each other: more than these can
//! do, nobody can.
//!
//!     cargo run --release -p multifd-codec --example processors -- FILE [METHOD] [STREAMS...]
//!
//! FILE is taken as memory, a packet's worth of 4 KiB pages at a time; METHOD is zlib unless it is
//! said. All take turns; "over" is the median of each round's comparison with one channel of one
//! stream, with its quarter points.

use std::error::Error;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use multifd_codec::{Accel, Decoder, Encoder, PageBuffer, Settings, Streams, decoder, is_zero};
use multifd_wire::{Method, PageSize};

const PAGE: PageSize = PageSize::K4;
/// Enough that threads start in next to no time, few enough that a machine with neighbours stays as
/// it is.
const PACKETS_A_TURN: usize = 32;
const ROUNDS: usize = 61;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).peekable();
    let path = arguments.next().ok_or("which FILE?")?;
    let memory = std::fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
    let method = arguments.next_if(|word| word.parse::<u8>().is_err());
    let method: Method = method.as_deref().unwrap_or("zlib").parse()?;
    let mut streams = Vec::new();
    for argument in arguments {
        streams.push(Streams::new(argument.parse()?)?);
    }
    if streams.is_empty() {
        streams = [2, 4, 8, 16]
            .map(Streams::new)
            .into_iter()
            .collect::<Result<_, _>>()?;
    }
    for line in compare(&memory, method, &streams, ROUNDS)? {
        println!("{line}");
    }
    Ok(())
}

/// A line for each contender.
fn compare(
    memory: &[u8],
    method: Method,
    streams: &[Streams],
    rounds: usize,
) -> Result<Vec<String>, Failure> {
    let pages = memory
        .chunks_exact(PAGE.bytes())
        .filter(|page| !is_zero(page));
    let pages: Vec<u8> = pages.flatten().copied().collect();
    let packets = pages.chunks_exact(PAGE.bytes() * PAGE.pages_per_packet());
    if packets.len() == 0 {
        return Err("there are not enough pages for a packet".into());
    }
    let packets: Vec<&[u8]> = packets.cycle().take(PACKETS_A_TURN).collect();

    let one = Streams::default();
    let mut contenders = vec![Contender::new(
        "1 channel, 1 stream".to_owned(),
        method,
        1,
        one,
        &packets,
    )?];
    for &streams in streams {
        let name = format!("1 channel, {streams} streams");
        contenders.push(Contender::new(name, method, 1, streams, &packets)?);
    }
    let processors = thread::available_parallelism()?.get();
    let name = format!("{processors} channels, 1 stream each");
    contenders.push(Contender::new(name, method, processors, one, &packets)?);

    for round in 0..=rounds {
        for contender in &mut contenders {
            let speeds = [
                contender.timed(Channel::write)?,
                contender.timed(Channel::read)?,
            ];
            contender.check()?;
            // The first time fills buffers.
            if round > 0 {
                contender.speeds.push(speeds);
            }
        }
    }
    let first = contenders[0].speeds.clone();
    Ok(contenders
        .iter()
        .map(|contender| contender.line(&first))
        .collect())
}

struct Contender {
    name: String,
    channels: Vec<Channel>,
    /// MB/s of pages of all channels together, written and read, by round.
    speeds: Vec<[f64; 2]>,
}

struct Channel {
    encoder: Encoder<usize>,
    decoder: Box<dyn Decoder>,
    /// A turn's packets; out of their places while they are in work.
    packets: Vec<PageBuffer>,
    payloads: Vec<Vec<u8>>,
    arrived: Vec<PageBuffer>,
}

impl Contender {
    fn new(
        name: String,
        method: Method,
        channels: usize,
        streams: Streams,
        packets: &[&[u8]],
    ) -> Result<Self, Failure> {
        let mut settings = Settings::default();
        settings.accel = Accel::Software;
        settings.streams = streams;
        let channel = || {
            Ok(Channel {
                encoder: Encoder::new(method, &settings)?,
                decoder: decoder(method, &settings)?,
                packets: packets
                    .iter()
                    .map(|packet| packet.to_vec().into())
                    .collect(),
                payloads: vec![Vec::new(); PACKETS_A_TURN],
                arrived: packets
                    .iter()
                    .map(|packet| vec![0; packet.len()].into())
                    .collect(),
            })
        };
        let channels = std::iter::repeat_with(channel).take(channels);
        Ok(Self {
            name,
            channels: channels.collect::<Result<_, Failure>>()?,
            speeds: Vec::new(),
        })
    }

    /// Lets each channel do `step` with the packets, all at once.
    fn timed(&mut self, step: Step) -> Result<f64, Failure> {
        let packets = self.channels.iter().flat_map(|channel| &channel.packets);
        let bytes = packets.map(|packet| packet.as_ref().len()).sum::<usize>();
        let seconds = if let [channel] = &mut *self.channels {
            let since = Instant::now();
            step(channel)?;
            since.elapsed().as_secs_f64()
        } else {
            let together = &Barrier::new(self.channels.len());
            thread::scope(|scope| {
                let run = |channel| {
                    scope.spawn(move || -> Result<f64, Failure> {
                        together.wait();
                        let since = Instant::now();
                        step(channel)?;
                        Ok(since.elapsed().as_secs_f64())
                    })
                };
                let threads: Vec<_> = self.channels.iter_mut().map(run).collect();
                threads.into_iter().try_fold(0.0, |longest: f64, thread| {
                    let seconds = thread
                        .join()
                        .map_err(|_| "a channel's thread has panicked")??;
                    Ok::<_, Failure>(longest.max(seconds))
                })
            })?
        };
        Ok(bytes as f64 / 1e6 / seconds)
    }

    /// Checks what was read last.
    fn check(&self) -> Result<(), Failure> {
        let mut channels = self.channels.iter();
        let is_other =
            |(arrived, packet): (&PageBuffer, &PageBuffer)| arrived.as_ref() != packet.as_ref();
        if channels.any(|channel| channel.arrived.iter().zip(&channel.packets).any(is_other)) {
            return Err("other pages have come out".into());
        }
        Ok(())
    }

    fn line(&self, first: &[[f64; 2]]) -> String {
        let [written, read] = [0, 1].map(|way| {
            let mut speeds: Vec<f64> = self.speeds.iter().map(|speeds| speeds[way]).collect();
            let mut over: Vec<f64> = std::iter::zip(&self.speeds, first)
                .map(|(speeds, first)| speeds[way] / first[way])
                .collect();
            speeds.sort_by(f64::total_cmp);
            over.sort_by(f64::total_cmp);
            let at = |quarter| over[over.len() * quarter / 4];
            format!(
                "{:5.0} MB/s, over {:.2}x ({:.2} to {:.2})",
                speeds[speeds.len() / 2],
                at(2),
                at(1),
                at(3)
            )
        });
        format!("{:<26} written at {written}, read at {read}", self.name)
    }
}

type Step = fn(&mut Channel) -> Result<(), Failure>;

impl Channel {
    fn write(&mut self) -> Result<(), Failure> {
        let (mut number, mut payload) = (0, Vec::new());
        loop {
            while self.encoder.room() > 0
                && let Some(packet) = self.packets.get_mut(number)
            {
                self.encoder.push(std::mem::take(packet), PAGE, number);
                number += 1;
            }
            let Some((packet, number)) = self.encoder.pop(&mut payload)? else {
                return Ok(());
            };
            self.packets[number] = packet;
            std::mem::swap(&mut self.payloads[number], &mut payload);
        }
    }

    /// Reads what was written last.
    fn read(&mut self) -> Result<(), Failure> {
        for (payload, arrived) in self.payloads.iter_mut().zip(&mut self.arrived) {
            self.decoder.decode_owned(payload, PAGE, arrived)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_has_a_line() {
        let memory: Vec<u8> = (0..200 * PAGE.bytes()).map(|at| (at / 7) as u8).collect();
        for method in [Method::Zlib, Method::Canned] {
            let lines = compare(&memory, method, &[Streams::new(4).unwrap()], 1).unwrap();
            assert_eq!(lines.len(), 3, "{lines:?}");
            assert!(lines[0].contains("over 1.00x"), "{lines:?}");
        }
    }
}
