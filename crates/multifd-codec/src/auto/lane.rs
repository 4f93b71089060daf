//! One channel's part: it turns points in time into observations.

use std::sync::Arc;
use std::time::Duration;

use super::controller::{Drained, Observation};
use super::{Auto, Step};

/// One channel of a migration with [`Auto`].
///
/// For each packet with pages, in this order: [`Lane::step`] before it is encoded,
/// [`Lane::encoded`] afterwards, and [`Lane::written`] once it was written.
pub struct Lane {
    auto: Arc<Auto>,
    packet: Packet,
    /// When the packet before was written, if there was one.
    written_at: Option<Duration>,
    window: Option<Window>,
}

/// The packet in hand.
struct Packet {
    step: Step,
    began: Duration,
    /// Since the packet before was written: reading, and waiting for the source.
    reading: Duration,
    encoding: Duration,
    input_bytes: usize,
    payload_bytes: usize,
    writes_from: Duration,
    /// The connection had nothing to send.
    found_idle: bool,
}

/// A time over which the connection's rate is measured.
struct Window {
    first: Since,
    /// Since the packet before.
    last: Since,
    /// Packets before which the connection was looked at, and those before which it had nothing to
    /// send.
    checks: u32,
    idle_checks: u32,
}

/// A point in time, what was waiting then, and what was written since.
#[derive(Clone, Copy)]
struct Since {
    at: Duration,
    queued: u64,
    written: u64,
}

impl Since {
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
        let now = Since::new(now, queued);
        Self {
            first: now,
            last: now,
            checks: 0,
            idle_checks: 0,
        }
    }
}

/// Shorter windows show the bursts of a link and not its rate.
const WINDOW: Duration = Duration::from_millis(20);

/// A channel that rests notices nothing, so not even a budget of next to nothing makes it rest for
/// longer.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// A connection is the limit if it is idle before fewer than one packet in so many.
const MOST_IDLE: u32 = 8;

impl Lane {
    /// A channel before its first packet.
    #[must_use]
    pub fn new(auto: Arc<Auto>) -> Self {
        auto.with(|controller| controller.count_lane(true));
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

    /// The time on the clock of all lanes.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.auto.now()
    }

    /// What all lanes share.
    #[must_use]
    pub const fn auto(&self) -> &Arc<Auto> {
        &self.auto
    }

    /// The step of the next packet, which is encoded from `now` on.
    pub fn step(&mut self, now: Duration) -> Step {
        let index = self.auto.with(|controller| controller.choose(now));
        let reading = self.written_at.map(|then| now.saturating_sub(then));
        self.packet.step = Step::of(self.auto.method, index);
        self.packet.reading = reading.unwrap_or_default();
        self.packet.began = now;
        self.packet.step
    }

    /// The packet is encoded: its pages of `input_bytes` became `payload_bytes`. It is written from
    /// `now` on. Bytes that the connection has not passed on yet are `queued`.
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
        let passed_on = |since: Since| Drained {
            bytes: since
                .queued
                .saturating_add(since.written)
                .saturating_sub(queued),
            time: now.saturating_sub(since.at),
            was_busy: queued > 0,
        };
        window.checks += 1;
        window.idle_checks += u32::from(queued == 0);
        let burst = passed_on(window.last);
        window.last = Since::new(now, queued);
        let was_busy = window.idle_checks * MOST_IDLE < window.checks;
        let drained = Drained {
            was_busy,
            ..passed_on(window.first)
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

    /// The packet was written.
    pub fn written(&mut self, now: Duration) {
        self.written_at = Some(now);
        let packet = &self.packet;
        if let Some(window) = &mut self.window {
            for since in [&mut window.first, &mut window.last] {
                since.written = since.written.saturating_add(packet.payload_bytes as u64);
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
        self.auto.with(|controller| controller.note(&observation));
    }

    /// How long the channel has to rest after a packet that was written, so that encoding keeps to
    /// its budget.
    #[must_use]
    pub fn pause(&self, now: Duration) -> Option<Duration> {
        let share = self.auto.with(|controller| controller.share())?;
        let encoding = self.packet.encoding.as_secs_f64();
        let whole = Duration::try_from_secs_f64(encoding / share).unwrap_or(LONGEST_PAUSE);
        let passed = now.saturating_sub(self.packet.began);
        let pause = whole.saturating_sub(passed).min(LONGEST_PAUSE);
        (!pause.is_zero()).then_some(pause)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.auto.with(|controller| controller.count_lane(false));
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("step", &self.packet.step)
            .finish_non_exhaustive()
    }
}
