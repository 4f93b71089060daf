//! One channel's part in auto: turns points in time into measurements.

use std::sync::Arc;
use std::time::Duration;

use super::controller::{Controller, Drained, Observation};
use super::{Auto, Step};

/// One channel of a migration with [`Auto`].
///
/// For each packet with pages, in this order: [`Lane::step`] before it is encoded,
/// [`Lane::encoded`] afterwards, and [`Lane::written`] once it was written.
pub struct Lane {
    auto: Arc<Auto>,
    packet: Packet,
    /// The time at which the packet before was written, if there was one.
    written_at: Option<Duration>,
    window: Option<Window>,
}

/// The packet in hand.
struct Packet {
    step: Step,
    began: Duration,
    /// The time since the packet before was written: the channel reads, and waits for the source.
    reading: Duration,
    encoding: Duration,
    input_bytes: usize,
    payload_bytes: usize,
    writes_from: Duration,
    /// No bytes waited in the connection.
    found_idle: bool,
}

/// A time over which the connection's rate is measured.
struct Window {
    start: Point,
    /// The packet before.
    last: Point,
    /// The packets of the window, and those before which no bytes waited in the connection.
    packets: u32,
    idle_packets: u32,
}

/// A point in time.
#[derive(Clone, Copy)]
struct Point {
    at: Duration,
    /// Bytes that waited in the connection then.
    queued: u64,
    /// Bytes that were written since then.
    written: u64,
}

impl Point {
    const fn new(at: Duration, queued: u64) -> Self {
        Self {
            at,
            queued,
            written: 0,
        }
    }
}

impl Window {
    const fn new(now: Duration, queued: u64) -> Self {
        let now = Point::new(now, queued);
        Self {
            start: now,
            last: now,
            packets: 0,
            idle_packets: 0,
        }
    }
}

/// The least time of a window: a shorter one shows a link's bursts instead of its rate.
const WINDOW: Duration = Duration::from_millis(20);

/// The longest pause, whatever the budget: a channel that pauses does not notice the end of its
/// migration.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// A connection is the limit if it is idle before fewer than one in this many packets.
const MOST_IDLE: u32 = 8;

impl Lane {
    /// The lane of a channel before its first packet.
    #[must_use]
    pub fn new(auto: Arc<Auto>) -> Self {
        auto.with(Controller::add_lane);
        let step = Step::of(auto.method, 0);
        Self {
            auto,
            packet: Packet {
                step,
                began: Duration::ZERO,
                reading: Duration::ZERO,
                encoding: Duration::ZERO,
                input_bytes: 0,
                payload_bytes: 0,
                writes_from: Duration::ZERO,
                found_idle: false,
            },
            written_at: None,
            window: None,
        }
    }

    /// The time on the clock of all lanes: [`Auto::now`].
    #[must_use]
    pub fn now(&self) -> Duration {
        self.auto.now()
    }

    /// The auto that all lanes of the migration share.
    #[must_use]
    pub const fn auto(&self) -> &Arc<Auto> {
        &self.auto
    }

    /// Chooses the step of the next packet, whose encoding begins at `now`.
    pub fn step(&mut self, now: Duration) -> Step {
        let index = self.auto.with(|controller| controller.choose(now));
        let reading = self.written_at.map(|then| now.saturating_sub(then));
        self.packet.step = Step::of(self.auto.method, index);
        self.packet.reading = reading.unwrap_or_default();
        self.packet.began = now;
        self.packet.step
    }

    /// Reports that the packet is encoded: its pages of `input_bytes` became a payload of
    /// `payload_bytes`. Its writing begins at `now`, when `queued` bytes wait in the connection.
    pub fn encoded(
        &mut self,
        now: Duration,
        input_bytes: usize,
        payload_bytes: usize,
        queued: u64,
    ) {
        let packet = &mut self.packet;
        packet.encoding = now.saturating_sub(packet.began);
        packet.input_bytes = input_bytes;
        packet.payload_bytes = payload_bytes;
        packet.writes_from = now;
        packet.found_idle = queued == 0;
        let Some(window) = &mut self.window else {
            self.window = Some(Window::new(now, queued));
            return;
        };
        let passed_on_since = |point: Point| Drained {
            bytes: point
                .queued
                .saturating_add(point.written)
                .saturating_sub(queued),
            time: now.saturating_sub(point.at),
            was_busy: queued > 0,
        };
        window.packets += 1;
        window.idle_packets += u32::from(queued == 0);
        let burst = passed_on_since(window.last);
        window.last = Point::new(now, queued);
        let was_busy = window.idle_packets * MOST_IDLE < window.packets;
        let drained = Drained {
            was_busy,
            ..passed_on_since(window.start)
        };
        let is_over = drained.time >= WINDOW;
        if is_over {
            self.window = Some(Window::new(now, queued));
        }
        self.auto.with(|controller| {
            controller.burst(burst, now);
            if is_over {
                controller.drained(drained, now);
            }
        });
    }

    /// Reports that the packet is written.
    pub fn written(&mut self, now: Duration) {
        self.written_at = Some(now);
        let packet = &self.packet;
        if let Some(window) = &mut self.window {
            for point in [&mut window.start, &mut window.last] {
                point.written = point.written.saturating_add(packet.payload_bytes as u64);
            }
        }
        let observation = Observation {
            step: packet.step.index(),
            input_bytes: packet.input_bytes,
            payload_bytes: packet.payload_bytes,
            reading: packet.reading,
            encoding: packet.encoding,
            // Writing into a connection that has room is copying.
            copying: packet
                .found_idle
                .then(|| now.saturating_sub(packet.writes_from)),
        };
        self.auto
            .with(|controller| controller.packet_done(&observation));
    }

    /// The time for which the channel has to pause after it has written a packet, if encoding has
    /// a budget.
    #[must_use]
    pub fn pause(&self, now: Duration) -> Option<Duration> {
        let processors = self.auto.with(|controller| controller.lane_processors())?;
        let encoding = self.packet.encoding.as_secs_f64();
        let whole = Duration::try_from_secs_f64(encoding / processors).unwrap_or(LONGEST_PAUSE);
        let passed = now.saturating_sub(self.packet.began);
        let pause = whole.saturating_sub(passed).min(LONGEST_PAUSE);
        (!pause.is_zero()).then_some(pause)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.auto.with(Controller::remove_lane);
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("step", &self.packet.step)
            .finish_non_exhaustive()
    }
}
