//! Channels in virtual time: what the controller chooses where the best choice is known.

use std::sync::Arc;
use std::time::Duration;

use multifd_wire::Method;

use super::{Auto, Lane};
use crate::Settings;

const PACKET: usize = 512 << 10;
const MS: Duration = Duration::from_millis(1);

/// Encoding speeds in bytes of pages a second, and sizes, of the five steps of zstd on a guest's
/// memory: about those of one core in docs/benchmarks.md.
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
    queued: f64,
    random: u64,
    /// Seconds for the packets of each step.
    packets: [u64; 5],
}

#[derive(Clone, Copy)]
struct World {
    steps: [(f64, f64); 5],
    /// Bytes a second.
    link: f64,
    source: f64,
    /// Bytes that the sockets take.
    buffer: f64,
    /// How much times vary, as a part of them.
    noise: f64,
    /// Milliseconds for which another program has the processor, before one packet in fifty.
    preempted: u32,
}

const WORLD: World = World {
    steps: GUEST,
    link: 117e6,
    source: 3e9,
    buffer: 4e6,
    noise: 0.0,
    preempted: 0,
};

impl World {
    /// Seconds for a packet with a step, once everything has settled.
    fn seconds(&self, step: usize) -> f64 {
        let (speed, size) = self.steps[step];
        let bytes = PACKET as f64;
        let busy = bytes / speed + bytes / self.source + bytes * size * 0.3e-9;
        busy.max(bytes * size / self.link)
    }

    /// The time of the best step that never changes.
    fn best(&self) -> f64 {
        let all = (0..5).map(|step| self.seconds(step));
        all.reduce(f64::min).unwrap()
    }
}

impl Channel {
    fn new(auto: &Arc<Auto>) -> Self {
        Self {
            lane: Lane::new(Arc::clone(auto)),
            now: Duration::ZERO,
            queued: 0.0,
            random: 1,
            packets: [0; 5],
        }
    }

    fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn pass(&mut self, seconds: f64, link: f64) {
        self.now += Duration::from_secs_f64(seconds);
        self.queued = (self.queued - seconds * link).max(0.0);
    }

    fn packet(&mut self, world: &World) {
        let World { link, .. } = *world;
        let varied = |channel: &mut Self, seconds: f64| {
            seconds * (1.0 + world.noise * (2.0 * channel.random() - 1.0))
        };
        let reading = varied(self, PACKET as f64 / world.source);
        self.pass(reading, link);
        let step = self.lane.step(self.now);
        self.packets[step.index()] += 1;
        let (speed, size) = world.steps[step.index()];
        let encoding = varied(self, PACKET as f64 / speed);
        self.pass(encoding, link);
        if self.random() < 0.02 {
            self.pass(f64::from(world.preempted) / 1e3, link);
        }
        let payload = PACKET as f64 * size;
        let queued = self.queued;
        self.lane
            .encoded(self.now, PACKET, payload as usize, queued as u64);
        let room = world.buffer - self.queued;
        let copying = payload * 0.3e-9;
        let waiting = ((payload - room) / link).max(copying);
        self.pass(waiting, link);
        self.queued += payload;
        self.lane.written(self.now);
    }

    /// Runs for `time`; returns seconds per packet.
    fn run(&mut self, world: &World, time: Duration) -> f64 {
        let (began, mut packets) = (self.now, 0);
        while self.now < began + time {
            self.packet(world);
            packets += 1;
        }
        (self.now - began).as_secs_f64() / f64::from(packets)
    }
}

fn auto() -> Arc<Auto> {
    Auto::new(Method::Zstd, &Settings::default()).unwrap()
}

/// Every link and memory: after half a second of traffic, as good as the best fixed step.
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
                    let best = world.best() + delay;
                    let worse = found / best;
                    assert!(
                        worse < 1.05,
                        "link {link}, source {source}, noise {noise}, {preempted} ms: {worse:.3} times {best}, packets {:?}, {:#?}",
                        channel.packets,
                        channel.lane_summary().changes.len(),
                    );
                }
            }
        }
    }
}

impl Channel {
    fn lane_summary(&self) -> super::Summary {
        self.lane.auto().summary()
    }
}
