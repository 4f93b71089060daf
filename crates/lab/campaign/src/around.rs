//! The surroundings of a migration: the source's network, strangers, killers, and the clock.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crate::link::{self, Target};
use crate::locked;
use crate::net::{Address, Listener, Socket, Stop, Trigger};
use crate::plan::{Plan, hello};
use crate::process::Multifd;
use crate::scenario::{Scenario, Victim};

/// State that all threads of a run share.
#[derive(Debug, Default)]
pub struct Around {
    /// Ends the run.
    pub stop: Stop,
    /// Set when the ends have ended: from then on no part is killed.
    pub done: Stop,
    /// The thing that had not ended in time.
    pub hang: Mutex<Option<String>>,
    broken: Stop,
}

/// The address that the source dials, and the triggers that its bytes fire.
pub type Leg = (Address, Vec<Arc<Trigger>>);

impl Around {
    /// Starts a scenario's networks, strangers and kills. The source dials the first part.
    pub fn start<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        scenario: &'s Scenario,
        plan: &Plan,
        folder: &Path,
        parts: &'s [(&'s Multifd, Address)],
        limit: Duration,
    ) -> Result<Leg, String> {
        let text = |error: std::io::Error| error.to_string();
        let part = |victim: Victim| match victim {
            Victim::Near => parts.first(),
            Victim::Far => parts.last(),
        };
        let (_, near) = parts.first().ok_or("no part")?;
        let mut address = near.clone();
        if let Some(behaviour) = &scenario.links[0] {
            let listener = if scenario.tcp[0] {
                Listener::tcp()
            } else {
                Listener::unix(&folder.join("link"))
            };
            let listener = listener.map_err(text)?;
            let here = listener.address().map_err(text)?;
            let target = Target::One(std::mem::replace(&mut address, here));
            link::run_owned(scope, behaviour, listener, target, &self.stop, &self.broken);
        }
        for (victim, stranger) in &scenario.strangers {
            if let Some((_, address)) = part(*victim) {
                stranger.come(scope, address, &self.stop);
            }
        }
        let mut passed = Vec::new();
        if let Some((victim, at, delay)) = scenario.kill
            && let Some((process, _)) = part(victim)
        {
            let trigger = Arc::new(Trigger::new(at));
            passed.push(Arc::clone(&trigger));
            scope.spawn(move || {
                if trigger.wait(&self.done) {
                    self.done.sleep(delay);
                    process.kill();
                }
            });
        }
        if let Some(delay) = scenario.duplicate {
            let (address, hello) = (address.clone(), hello(plan.shape.uuid, 0));
            scope.spawn(move || {
                self.stop.sleep(delay);
                if let Ok(socket) = Socket::connect(&address, false) {
                    let socket = self.stop.keep(socket);
                    // It may be refused already.
                    let _ = socket.write_all(&hello);
                    self.stop.sleep(Duration::from_secs(3600));
                }
            });
        }
        // This thread ends a run that exceeds its time limit.
        scope.spawn(move || {
            let deadline = Instant::now() + limit;
            while !self.done.is_set() {
                if Instant::now() > deadline {
                    *locked(&self.hang) = Some(format!("not over after {limit:?}"));
                    for (process, _) in parts {
                        process.kill();
                    }
                    return self.stop.stop();
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        Ok((address, passed))
    }

    /// The ends have ended.
    pub fn end(&self) {
        self.done.stop();
        self.stop.stop();
    }
}
