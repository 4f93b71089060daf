//! Channels in virtual time: compares the controller's choice with the best one, which is known.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use multifd_wire::Method;

use super::{Auto, Lane};
use crate::Settings;

const PACKET: usize = 512 << 10;
const MS: Duration = Duration::from_millis(1);

/// Encoding speeds in bytes of pages a second, and sizes, of the five steps of zstd on a guest's
/// memory: about those of one processor in docs/benchmarks.md.
const GUEST: [(f64, f64); 5] = [
    (8e9, 1.0),
    (650e6, 0.44),
    (500e6, 0.38),
    (300e6, 0.36),
    (100e6, 0.34),
];
const NOISE: [(f64, f64); 5] = [
    (8e9, 1.0),
    (2e9, 1.0),
    (1.5e9, 1.0),
    (900e6, 1.0),
    (400e6, 1.0),
];

/// One channel and its connection.
struct Channel {
    lane: Lane,
    now: Duration,
    /// Bytes that wait, with the rate at which they pass on, and the whole packet's bytes.
    queue: VecDeque<Waiting>,
    random: u64,
    /// Seconds of encoding.
    encoding: f64,
    packets: [u64; 5],
    /// It ignores the controller and uses the best step of its world.
    is_oracle: bool,
}

/// A packet, or the rest of one, in the sockets.
struct Waiting {
    left: f64,
    whole: f64,
    step: usize,
}

#[derive(Clone, Copy, Debug)]
struct World {
    steps: [(f64, f64); 5],
    /// Bytes a second.
    link: f64,
    source: f64,
    /// Bytes that the sockets buffer.
    buffer: f64,
    /// The variation of all times, as a part of them.
    noise: f64,
    /// The other end's decoding speed in bytes of pages a second, but for pages as they are.
    decoder: f64,
    /// Milliseconds for which another program takes the processor, at one packet in fifty.
    preempted: u32,
}

const WORLD: World = World {
    steps: GUEST,
    link: 117e6,
    source: 3e9,
    buffer: 4e6,
    noise: 0.0,
    decoder: f64::INFINITY,
    preempted: 0,
};

impl World {
    /// Seconds for a packet with a step, once everything has settled.
    fn seconds(&self, step: usize) -> f64 {
        let (speed, size) = self.steps[step];
        let bytes = PACKET as f64;
        let busy = bytes / speed + bytes / self.source + bytes * size * 0.3e-9;
        busy.max(bytes * size / self.passes_on(step))
    }

    /// Bytes of payload a second that the connection passes on.
    fn passes_on(&self, step: usize) -> f64 {
        let (_, size) = self.steps[step];
        match step {
            0 => self.link,
            _ => self.link.min(self.decoder * size),
        }
    }

    fn best_step(&self) -> usize {
        let less = |one: &usize, other: &usize| self.seconds(*one).total_cmp(&self.seconds(*other));
        (0..5).min_by(less).unwrap()
    }

    /// The time of the best step that never changes.
    fn best(&self) -> f64 {
        self.seconds(self.best_step())
    }
}

impl Channel {
    fn new(auto: &Arc<Auto>) -> Self {
        Self {
            lane: Lane::new(Arc::clone(auto)),
            now: Duration::ZERO,
            queue: VecDeque::new(),
            random: 1,
            encoding: 0.0,
            packets: [0; 5],
            is_oracle: false,
        }
    }

    fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn queued(&self) -> f64 {
        self.queue.iter().map(|waiting| waiting.left).sum()
    }

    /// The number of packets that wait.
    fn queued_packets(&self) -> f64 {
        let parts = self.queue.iter();
        parts.map(|waiting| waiting.left / waiting.whole).sum()
    }

    fn pass(&mut self, seconds: f64, world: &World) {
        self.now += Duration::from_secs_f64(seconds);
        let mut seconds = seconds;
        while let Some(first) = self.queue.front_mut() {
            let rate = world.passes_on(first.step);
            if first.left > seconds * rate {
                first.left -= seconds * rate;
                break;
            }
            seconds -= first.left / rate;
            self.queue.pop_front();
        }
    }

    /// Seconds until the queue has room for `bytes`.
    fn room(&self, bytes: f64, world: &World) -> f64 {
        let mut over = self.queued() + bytes - world.buffer;
        let mut seconds = 0.0;
        for waiting in &self.queue {
            let part = over.min(waiting.left).max(0.0);
            seconds += part / world.passes_on(waiting.step);
            over -= part;
        }
        seconds
    }

    fn packet(&mut self, world: &World) {
        let varied = |channel: &mut Self, seconds: f64| {
            seconds * (1.0 + world.noise * (2.0 * channel.random() - 1.0))
        };
        let reading = varied(self, PACKET as f64 / world.source);
        self.pass(reading, world);
        let mut step = self.lane.step(self.now).index();
        if self.is_oracle {
            step = world.best_step();
        }
        self.packets[step] += 1;
        let (speed, size) = world.steps[step];
        let encoding = varied(self, PACKET as f64 / speed);
        self.pass(encoding, world);
        if self.random() < 0.02 {
            self.pass(f64::from(world.preempted) / 1e3, world);
        }
        let payload = PACKET as f64 * size;
        let queued = self.queued();
        self.lane
            .encoded(self.now, PACKET, payload as usize, queued as u64);
        let waiting = self.room(payload, world).max(payload * 0.3e-9);
        self.pass(waiting, world);
        self.queue.push_back(Waiting {
            left: payload,
            whole: payload,
            step,
        });
        self.lane.written(self.now);
        self.encoding += encoding;
        if let Some(pause) = self.lane.pause(self.now) {
            self.pass(pause.as_secs_f64(), world);
        }
    }

    /// Runs for `time`. Returns the seconds for each packet that has arrived.
    fn run(&mut self, world: &World, time: Duration) -> f64 {
        let (began, mut packets) = (self.now, self.queued_packets());
        while self.now < began + time {
            self.packet(world);
            packets += 1.0;
        }
        (self.now - began).as_secs_f64() / (packets - self.queued_packets())
    }
}

impl Channel {
    fn changes(&self) -> usize {
        let summary = self.lane.auto().summary();
        summary.changes.len() + summary.more_changes as usize
    }
}

fn auto() -> Arc<Auto> {
    Auto::new(Method::Zstd, &Settings::default()).unwrap()
}

/// On every link and memory, auto is as good as the best fixed step after half a second.
#[test]
fn it_finds_the_best_step() {
    for steps in [GUEST, NOISE] {
        for link in [12e6, 50e6, 117e6, 290e6, 1.17e9, 3e9] {
            for source in [20e6, 200e6, 3e9] {
                for (noise, preempted) in [(0.0, 0), (0.3, 0), (0.3, 5)] {
                    let world = World {
                        steps,
                        link,
                        source,
                        noise,
                        preempted,
                        ..WORLD
                    };
                    let mut channel = Channel::new(&auto());
                    channel.run(&world, 500 * MS);
                    let found = channel.run(&world, 5000 * MS);
                    let delay = f64::from(preempted) / 1e3 * 0.02;
                    let worse = found / (world.best() + delay);
                    assert!(
                        worse < 1.05,
                        "link {link}, source {source}, noise {noise}, {preempted} ms: \
                         {worse:.3} times the best, packets {:?}",
                        channel.packets,
                    );
                    // Varying times make it change now and then between equal steps.
                    assert!(channel.changes() < 60, "{world:?}: {}", channel.changes());
                }
            }
        }
    }
}

/// Noise does not make it leave a step that is best by far.
#[test]
fn it_does_not_oscillate() {
    for (steps, link) in [(GUEST, 30e6), (NOISE, 117e6), (GUEST, 3e9)] {
        let world = World {
            steps,
            link,
            noise: 0.5,
            ..WORLD
        };
        let mut channel = Channel::new(&auto());
        channel.run(&world, 1000 * MS);
        let before = channel.changes();
        channel.run(&world, 20_000 * MS);
        assert!(channel.changes() - before <= 4, "{}", channel.changes());
    }
}

/// A channel passes through several worlds. Returns its time for a packet in each, as a multiple of
/// an oracle's time.
fn beside_an_oracle(worlds: &[World]) -> Vec<f64> {
    let (mut channel, mut oracle) = (Channel::new(&auto()), Channel::new(&auto()));
    oracle.is_oracle = true;
    let time = 4000 * MS;
    let worse = |world| channel.run(world, time) / oracle.run(world, time);
    worlds.iter().map(worse).collect()
}

#[track_caller]
fn assert_close(worse: &[f64]) {
    let mean = worse.iter().sum::<f64>() / worse.len() as f64;
    assert!(mean < 1.05, "{worse:?}");
    assert!(worse.iter().all(|&worse| worse < 1.1), "{worse:?}");
}

#[test]
fn it_follows_a_link() {
    let rates = [117e6, 12e6, 1.17e9, 12e6, 117e6, 1.17e9];
    let worlds = rates.map(|link| World { link, ..WORLD });
    assert_close(&beside_an_oracle(&worlds));
}

#[test]
fn it_follows_the_pages() {
    let worlds = [NOISE, GUEST, NOISE, GUEST].map(|steps| World { steps, ..WORLD });
    assert_close(&beside_an_oracle(&worlds));
}

/// Neighbours take nine tenths of the processors away, and give them back.
#[test]
fn it_follows_the_processors() {
    let slow = GUEST.map(|(speed, size)| (speed / 10.0, size));
    let link = 200e6;
    let worlds = [GUEST, slow, GUEST].map(|steps| World {
        steps,
        link,
        ..WORLD
    });
    assert_close(&beside_an_oracle(&worlds));
}

/// The other end's decoder is the limit of a fast connection: pages go as they are. A slow link
/// stays the limit, and a faster decoder is used.
#[test]
fn it_finds_out_that_the_decoder_is_the_limit() {
    for (decoder, link) in [
        (150e6, 1.17e9),
        (300e6, 3e9),
        (400e6, 290e6),
        (300e6, 117e6),
        (2e9, 290e6),
        (150e6, 29e6),
    ] {
        for noise in [0.0, 0.3] {
            let world = World {
                decoder,
                link,
                noise,
                ..WORLD
            };
            let mut channel = Channel::new(&auto());
            channel.run(&world, 500 * MS);
            let found = channel.run(&world, 20_000 * MS);
            let worse = found / world.best();
            assert!(
                worse < 1.05,
                "{world:?}: {worse:.3} times the best, packets {:?}",
                channel.packets
            );
        }
    }
}

#[test]
fn it_follows_the_decoder() {
    let worlds = [f64::INFINITY, 250e6, f64::INFINITY, 250e6].map(|decoder| World {
        decoder,
        link: 400e6,
        ..WORLD
    });
    assert_close(&beside_an_oracle(&worlds));
}

/// Encoding stays within its budget, and the step is the best one within it.
#[test]
fn it_keeps_to_a_budget() {
    for (processors, link, step) in [
        (0.5, 117e6, 1),
        (0.02, 117e6, 0),
        (0.3, 12e6, 3),
        (4.0, 12e6, 4),
    ] {
        let settings = Settings::default();
        let auto = Auto::within(Method::Zstd, &settings, Some(processors)).unwrap();
        let mut channel = Channel::new(&auto);
        let world = World { link, ..WORLD };
        channel.run(&world, 1000 * MS);
        let (began, encoding) = (channel.now, channel.encoding);
        channel.packets = [0; 5];
        channel.run(&world, 10_000 * MS);
        let taken = (channel.encoding - encoding) / (channel.now - began).as_secs_f64();
        assert!(taken < processors * 1.01, "{taken} of {processors}");
        let packets: u64 = channel.packets.iter().sum();
        assert!(
            channel.packets[step] * 4 > packets * 3,
            "{:?}",
            channel.packets
        );
    }
}

/// Four channels share one auto, and the peer of one of them stops reading for a second now and
/// then.
#[test]
fn a_stalled_channel_misleads_no_other() {
    let auto = auto();
    let mut channels: Vec<Channel> = (0..4).map(|_| Channel::new(&auto)).collect();
    let world = World {
        link: 30e6,
        ..WORLD
    };
    let stalled = World {
        link: 100e3,
        ..WORLD
    };
    let mut taken = [0.0; 4];
    for _ in 0..2000 {
        // The channel with the earliest time goes next.
        let next = (0..4).min_by_key(|&index| channels[index].now).unwrap();
        let channel = &mut channels[next];
        let is_stalled = next == 0 && channel.now.as_secs() % 4 == 1;
        let before = channel.now;
        channel.packet(if is_stalled { &stalled } else { &world });
        taken[next] += (channel.now - before).as_secs_f64();
    }
    for channel in &channels[1..] {
        let packets: u64 = channel.packets.iter().sum();
        let found = channel.now.as_secs_f64() / packets as f64;
        assert!(found < world.best() * 1.1, "{found}, {:?}", channel.packets);
    }
}

/// The clock goes back or stands still, and the figures are arbitrary.
#[test]
fn arbitrary_figures_do_not_break_it() {
    let mut lane = Lane::new(auto());
    let mut channel = Channel::new(&auto());
    for _ in 0..100_000 {
        let mut any = || {
            let bits = (channel.random() * f64::from(u32::MAX)) as u64;
            match bits % 5 {
                0 => 0,
                1 => 1,
                2 => bits,
                3 => bits << 20,
                _ => u64::MAX,
            }
        };
        let step = lane.step(Duration::from_nanos(any()));
        assert!(step.index() < GUEST.len());
        let (input, payload) = (any() as usize, any() as usize);
        lane.encoded(Duration::from_nanos(any()), input, payload, any());
        lane.written(Duration::from_nanos(any()));
    }
}
