//! `multifd relay`.

mod ended;
mod ends;
mod folder;
pub(crate) mod memory;
pub(crate) mod metrics;
pub(crate) mod report;
mod requests;
mod routes;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::{Accel, BackendKind};
use multifd_relay::Failure;
use multifd_relay::leg::{Encryption, EncryptionOptions, LegAddress, Protocol, Rule};
use multifd_relay::relay::{MigrationReport, Relay, RelayConfig, Traffic, Update, pass_on};
use multifd_transport::Cancel;
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::incoming::{Incoming, Note, Vm};
use multifd_wire::{Limits, Method};

use self::ended::Ended;
use self::ends::{Count, Ends};
use self::folder::Watch;
use self::metrics::{Counters, Server};
use self::report::{Failed, Live, Running, Summary, advice};
pub(crate) use self::routes::Route;
use crate::args::RelayArgs;
use crate::pace::Pace;
use crate::page::{Ending, Page, Record, Writer};
use crate::process::Outcome;
use crate::sandbox::Sandbox;
use crate::say::{self, Progress};
use crate::signals::Signals;

/// Poll interval for cancellation.
const TICK: Duration = Duration::from_millis(100);

/// Time between two printed lines of progress of each migration where output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Migrations that run at once, over all addresses. Each has two threads, and one more for each of
/// its channels.
const MOST_MIGRATIONS: usize = 256;

/// Messages of a relay's threads to the printing thread.
enum Event {
    Note(String),
    /// This many connections were closed, because they are no part of a migration.
    PassedOver(u64, String),
    Begun(Box<Migration>),
    Update(u64, Update),
    Ended(u64, Box<Result<MigrationReport, Ended>>),
    /// No more migrations can be accepted at an address.
    Closed(String),
}

/// A migration under way.
pub(crate) struct Migration {
    number: u64,
    route: Arc<Route>,
    peer: String,
    /// The guest's name, if a trunk gives it.
    name: Option<String>,
    /// Known as soon as its set-up, or its first channel, has named it.
    vm: Vm,
    begun: Instant,
    totals: Traffic,
    pace: Pace,
    /// When a line about it was printed that nobody can overwrite.
    told: Instant,
    /// For its page, if there is to be one.
    record: Option<Box<Record>>,
}

/// The routes of a relay, and the rights that it has given up.
pub(crate) struct Confined(Result<(Vec<Route>, Sandbox), String>);

/// Reads which routes there are, and gives up what they have no use for. No thread may run yet.
pub(crate) fn confine(args: &RelayArgs) -> Confined {
    Confined(routes::of(args).and_then(|routes| {
        memory::bound(args.delta_memory, &routes, args.codec.method(true))?;
        let sandbox = match args.no_sandbox {
            true => Sandbox::none(),
            false => Sandbox::enter(args, &routes),
        };
        Ok((routes, sandbox))
    }))
}

/// Passes migrations on, any number at once: one, or one after another for ever.
pub(crate) fn run(args: &RelayArgs, confined: Confined) -> Outcome {
    let (routes, sandbox) = confined.0?;
    if let Some(folder) = args.report.as_deref().filter(|folder| !folder.is_dir()) {
        let name = say::printable_path(folder);
        return Err(
            format!("--report: {name} is no folder: make it before the relay starts").into(),
        );
    }
    say::note(sandbox);
    let mut relays = Vec::new();
    let mut watches = Vec::new();
    let mut encryptions = Vec::new();
    for (index, route) in routes.into_iter().enumerate() {
        let codec = args
            .codec
            .codec(route.connect.protocol == Protocol::Trunk)?;
        let mut config = RelayConfig::new(route.connect.clone(), codec.method);
        config.settings = codec.settings;
        config.recode = args.recode;
        if args.recode && codec.method == Method::None {
            return Err("--recode has no effect without --compression"
                .to_owned()
                .into());
        }
        config.auto = codec.auto;
        config.processors = args.cpus;
        if args.cpus.is_some() && !codec.auto {
            return Err("--cpus needs --effort auto".to_owned().into());
        }
        config.limits = Limits::default();
        config.dial_timeout = Duration::from_secs(args.dial_timeout.get().into());
        if index == 0 {
            announce(&config, args.codec.accel().1)?;
        }
        config.name = args.name.clone();
        config.verify = args.verify;
        config.trunk_channels = args.trunk_channels;
        config.rate_limit.clone_from(&args.max_rate);
        check_legs(&route, args)?;
        config.encryption = encryption(&route, args)?;
        if route.listen.tls || route.connect.tls {
            encryptions.push(config.encryption.clone());
        }
        if route.listen.needs_name() {
            watches.push(Watch::new(route, config, args.mode)?);
            continue;
        }
        let listener = say::listener(&route.listen.address, args.mode)?;
        let relay = Relay::on(listener, &route.listen, config)?;
        relays.push((relay, route));
    }
    // Each may lead to another one, so all of them have to be there.
    for (relay, _) in &relays {
        relay.check_way().map_err(|circle| circle.to_string())?;
    }
    let (tell, events) = mpsc::channel();
    let ends = Ends::default();
    let several = relays.len() > 1 || !watches.is_empty();
    let mut accepting = Vec::new();
    let mut listening = Vec::new();
    for (relay, route) in relays {
        listening.push(match several {
            true => format!("listening on {}, for {}", relay.leg(), route.connect),
            false => format!("listening on {}", relay.leg()),
        });
        let route = Arc::new(Route {
            listen: relay.leg().clone(),
            connect: route.connect,
        });
        let (tell, ends) = (tell.clone(), ends.clone());
        relay.acceptor().on_note(notes(&tell));
        let work = move || accept(relay, &route, &tell, &ends, None);
        let thread = thread::Builder::new().spawn(work);
        accepting.push(
            thread.map_err(|error| {
                say::chain(&Failure::here(TransportCause::thread(error).into()))
            })?,
        );
    }
    for watch in watches {
        listening.push(watch.to_string());
        let (tell, ends) = (tell.clone(), ends.clone());
        let thread = thread::Builder::new().spawn(move || watch.run(&tell, &ends));
        accepting.push(
            thread.map_err(|error| {
                say::chain(&Failure::here(TransportCause::thread(error).into()))
            })?,
        );
    }
    let signals = Signals::install()?;
    if !encryptions.is_empty() {
        signals.on_hangup(move || reload(&encryptions));
    }
    let counters = Arc::new(Counters::default());
    let server = args.metrics.as_ref().map(|address| {
        let (counters, draining) = (Arc::clone(&counters), ends.accepting.clone());
        Server::start(address, args.mode, counters, draining)
    });
    let server = server.transpose()?;
    server.iter().for_each(say::note);
    // Only now can a source be started.
    listening.iter().for_each(say::note);
    drop(tell);
    let mut printer = Printer::new(args, several, counters)?;
    let outcome = printer.run(&events, &ends, &signals);
    printer.finish();
    ends.accepting.cancel();
    ends.over.cancel();
    for thread in accepting {
        // Its panic was reported, and nothing is left of it.
        let _ = thread.join();
    }
    outcome
}

/// Passes an address's notes about connections on to the printing thread.
fn notes(tell: &Sender<Event>) -> impl Fn(&Note) + Send + 'static {
    let tell = tell.clone();
    move |note| {
        let words = note.to_string();
        // Once this command ends, nothing is printed.
        let _ = tell.send(match note {
            Note::PassedOver { .. } => Event::PassedOver(1, words),
            Note::Further { connections } => Event::PassedOver(*connections, words),
            _ => Event::Note(words),
        });
    }
}

/// Refuses what would show a guest's memory to a network.
pub(crate) fn refuse_exposed(leg: &LegAddress, insecure: bool) -> Result<(), String> {
    match leg.is_exposed() && !insecure {
        true => Err(format!(
            "{leg} would carry the guest's memory over a network in clear: \
             use trunk: with --tls-dir, or --insecure where the network is trusted"
        )),
        false => Ok(()),
    }
}

/// Refuses what this build cannot do, and what would show a guest's memory to a network.
fn check_legs(route: &Route, args: &RelayArgs) -> Outcome {
    for leg in [&route.listen, &route.connect] {
        refuse_exposed(leg, args.insecure)?;
    }
    if !args.allow.is_empty() && !route.listen.tls {
        return Err(format!(
            "--allow has no effect on {}: only clients of an encrypted leg have a certificate",
            route.listen
        )
        .into());
    }
    let says_name = route.connect.protocol == Protocol::Trunk || route.connect.needs_name();
    if args.name.is_some() && !says_name {
        return Err(format!(
            "--name has no effect on {}: only a trunk, or an address with {{name}}, takes a name",
            route.connect
        )
        .into());
    }
    let is_trunk = |leg: &LegAddress| leg.protocol == Protocol::Trunk;
    if args.verify && !is_trunk(&route.listen) && !is_trunk(&route.connect) {
        return Err(format!(
            "--verify has no effect from {} to {}: only two relays with a trunk between them compare pages",
            route.listen, route.connect
        )
        .into());
    }
    if args.trunk_channels > 1 && !is_trunk(&route.connect) {
        return Err(format!(
            "--trunk-channels has no effect on {}: set it at the relay whose --connect is a trunk",
            route.connect
        )
        .into());
    }
    if route.listen.needs_name() && args.name.is_some() {
        return Err(format!(
            "--name has no effect on {}: the names of its files name its guests",
            route.listen
        )
        .into());
    }
    if route.listen.needs_name() && !says_name {
        return Err(format!(
            "{} has names, and {} takes none: connect to a trunk, or to an address with {{name}}",
            route.listen, route.connect
        )
        .into());
    }
    Ok(())
}

/// Reads the certificates that a route needs.
fn encryption(route: &Route, args: &RelayArgs) -> Result<Encryption, String> {
    let mut options = EncryptionOptions::default();
    options.folder = args.tls_dir.clone();
    options.hostname = args.tls_hostname.clone();
    options.rules = args.allow.iter().map(|text| Rule::parse(text)).collect();
    let encryption = Encryption::open(&route.listen, &route.connect, &options)
        .map_err(|error| say::chain(&error))?;
    encryption.warnings().iter().for_each(say::note);
    Ok(encryption)
}

/// Reads the certificates anew, for later connections.
fn reload(encryptions: &[Encryption]) {
    for encryption in encryptions {
        match encryption.reload() {
            Ok(()) => {
                encryption.warnings().iter().for_each(say::note);
                say::note("the certificates were reloaded");
            }
            Err(error) => say::note(format_args!(
                "the old certificates stay in use: {}",
                say::chain(&error)
            )),
        }
    }
}

/// Says what will compute, as far as it is known before the first migration.
pub(crate) fn announce(config: &RelayConfig, accel_is_asked_for: bool) -> Outcome {
    let method = config.compression;
    if config.auto {
        say::note(format_args!(
            "writing {method} with the effort that is best at the moment"
        ));
        return Ok(());
    }
    // A relay that compresses nothing has an accelerator for reading only.
    let reads =
        method == Method::None && accel_is_asked_for && config.settings.accel != Accel::None;
    let (does, backend) = match reads {
        true => ("reading qpl and canned".to_owned(), config.reader()),
        false => (format!("writing {method}"), config.backend()),
    };
    let backend = backend.map_err(|error| error.to_string())?;
    if reads || method != Method::None {
        let reason = backend.reason().map(|reason| format!(" ({reason})"));
        let reason = reason.unwrap_or_default();
        match backend.kind() {
            BackendKind::Plain => say::note(format_args!("{does} by the usual library{reason}")),
            kind => say::note(format_args!("{does} by {kind}{reason}")),
        }
    }
    Ok(())
}

const NOBODY_ACCEPTS: &str = "no address is listened on any more: a defect of this program";

/// Accepts the migrations of one address, and passes each on in a thread of its own. An address
/// that is `given_up` takes no more migrations, and ends with its last one.
fn accept(
    mut relay: Relay,
    route: &Arc<Route>,
    tell: &Sender<Event>,
    ends: &Ends,
    given_up: Option<&Cancel>,
) {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let own = Count::default();
    let accepting = given_up.unwrap_or(&ends.accepting);
    let config = Arc::new(relay.config().clone());
    loop {
        let incoming = match relay.accept(accepting) {
            Ok(incoming) => incoming,
            Err(_) if accepting.is_cancelled() => {
                // Migrations under way may have connections to come.
                relay.refuse_new();
                let has_use = || given_up.is_none() || !own.is_none();
                while !ends.over.is_cancelled() && has_use() {
                    thread::sleep(TICK);
                }
                return;
            }
            Err(failure) if given_up.is_some() => {
                let note = format!("{}: {}", relay.leg(), say::chain(&failure));
                let _ = tell.send(Event::Note(note));
                return;
            }
            Err(failure) => {
                let _ = tell.send(Event::Closed(say::chain(&failure)));
                return;
            }
        };
        // The order matters. This thread counts its migration before it looks at the wish to end.
        // The printing thread sets that wish before it looks at the count, and ends the process.
        let (counted, running) = ends.running.one();
        if ends.accepting.is_cancelled() {
            let words = format!(
                "{}: refused: no more migrations are accepted",
                incoming.peer
            );
            drop(incoming);
            let _ = tell.send(Event::Note(words));
            continue;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let begun = Event::Begun(Box::new(Migration {
            number,
            route: Arc::clone(route),
            peer: incoming.peer.clone(),
            name: name_of(&incoming, &config),
            vm: incoming.channels.vm(),
            begun: Instant::now(),
            totals: Traffic::default(),
            pace: Pace::default(),
            told: Instant::now(),
            record: None,
        }));
        let _ = tell.send(begun);
        if running >= MOST_MIGRATIONS {
            drop(incoming);
            let _ = tell.send(Event::Ended(number, Box::new(Err(Ended::TooMany))));
            continue;
        }
        let (ended, updates, config) = (tell.clone(), tell.clone(), Arc::clone(&config));
        let (cancel, (own, _)) = (ends.migrations.clone(), own.one());
        // It is counted until its end has been told, by whichever thread does that.
        let counted = Arc::new(counted);
        let counted_there = Arc::clone(&counted);
        let migration = move || {
            let _counted = counted_there;
            let outcome = pass(incoming, &config, &cancel, number, &updates);
            drop(own);
            let _ = updates.send(Event::Ended(number, Box::new(outcome)));
        };
        if let Err(error) = thread::Builder::new().spawn(migration) {
            let failure = Failure::here(TransportCause::thread(error).into());
            let _ = ended.send(Event::Ended(number, Box::new(Err(Ended::Failed(failure)))));
        }
    }
}

/// The name of a guest, if one of its legs is a trunk.
fn name_of(incoming: &Incoming, config: &RelayConfig) -> Option<String> {
    let told = incoming.origin.as_ref().map(|origin| origin.name.clone());
    let own = config.name.as_ref().map(|name| name.as_str().to_owned());
    told.or(own)
}

fn pass(
    incoming: Incoming,
    config: &RelayConfig,
    cancel: &Cancel,
    number: u64,
    updates: &Sender<Event>,
) -> Result<MigrationReport, Ended> {
    let mut observe = |update| {
        let _ = updates.send(Event::Update(number, update));
    };
    // A defect ends one migration, and no other.
    match catch_unwind(AssertUnwindSafe(|| {
        pass_on(incoming, config, cancel, &mut observe)
    })) {
        Ok(outcome) => outcome.map_err(Ended::Failed),
        Err(_) => Err(Ended::Panicked),
    }
}

/// Prints what happens, and decides when it is over.
struct Printer<'a> {
    args: &'a RelayArgs,
    /// There are several addresses, so that each line says which.
    several: bool,
    running: Vec<Migration>,
    progress: Progress,
    counters: Arc<Counters>,
    /// Writes pages, and the folder for them.
    reports: Option<(Writer, &'a Path)>,
}

impl<'a> Printer<'a> {
    fn new(
        args: &'a RelayArgs,
        several: bool,
        counters: Arc<Counters>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let reports = match &args.report {
            Some(folder) => Some((Writer::start()?, folder.as_path())),
            None => None,
        };
        Ok(Self {
            args,
            several,
            running: Vec::new(),
            progress: Progress::new(),
            counters,
            reports,
        })
    }

    /// Waits for the last pages.
    fn finish(self) {
        if let Some((writer, _)) = self.reports {
            writer.finish();
        }
    }

    /// Ends with the first signal or, if one migration is all that is wanted, with that one: but
    /// never while another one runs, which would end with this process.
    fn run(&mut self, events: &Receiver<Event>, ends: &Ends, signals: &Signals) -> Outcome {
        let mut deadline = None;
        let mut last: Option<Outcome> = None;
        loop {
            let is_over = self.running.is_empty() && (last.is_some() || signals.first());
            if is_over {
                ends.accepting.cancel();
            }
            let is_idle = is_over && ends.running.is_none();
            if signals.first() && deadline.is_none() && !is_over {
                deadline = Some(Instant::now() + Duration::from_secs(self.args.drain.into()));
                ends.accepting.cancel();
                let (running, drain) = (self.running.len(), self.args.drain);
                self.note(&format!(
                    "no more migrations are accepted; those under way ({running}) have {drain} s to end"
                ));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                ends.migrations.cancel();
            }
            let rest = if is_idle { Duration::ZERO } else { TICK };
            let event = match events.recv_timeout(rest) {
                Ok(event) => event,
                Err(_) if is_idle => return last.take().unwrap_or(Ok(())),
                Err(RecvTimeoutError::Timeout) => continue,
                // Nothing is under way, and all addresses of folders are given back.
                Err(RecvTimeoutError::Disconnected) if is_over => {
                    return last.take().unwrap_or(Ok(()));
                }
                // Each of them has ended by a panic.
                Err(RecvTimeoutError::Disconnected) => {
                    return last.take().unwrap_or_else(|| Err(NOBODY_ACCEPTS.into()));
                }
            };
            match event {
                Event::Note(note) => self.note(&note),
                Event::PassedOver(connections, note) => {
                    self.counters.passed_over(connections);
                    self.note(&note);
                }
                Event::Begun(migration) => {
                    self.begun(*migration);
                    if self.args.once {
                        ends.accepting.cancel();
                    }
                }
                Event::Update(number, update) => self.update(number, update),
                Event::Closed(reason) => {
                    ends.accepting.cancel();
                    last = Some(Err(reason.into()));
                }
                Event::Ended(number, outcome) => {
                    let outcome = self.ended(number, *outcome);
                    match (outcome, &last) {
                        (outcome, None) if self.args.once => last = Some(outcome),
                        (Err(error), _) => self.note(&error.to_string()),
                        (Ok(()), _) => {}
                    }
                }
            }
        }
    }

    /// Has the page about a migration written.
    fn page(
        &self,
        migration: &Migration,
        record: Record,
        ending: Ending,
        words: String,
        report: Option<&MigrationReport>,
    ) {
        let Some((writer, folder)) = &self.reports else {
            return;
        };
        let uuid = migration.vm.text();
        let guest = migration.name.as_deref().or(uuid.as_deref());
        let path = record.path_in(folder, guest, migration.number);
        let title = match guest {
            Some(guest) => format!("Migration of {guest}"),
            None => format!("Migration {}", migration.number),
        };
        let mut page = Page::new(title, ending, words, record);
        page.figure("listens", &migration.route.listen);
        page.figure("connects", &migration.route.connect);
        match report {
            Some(report) => page.report(report),
            None => {
                page.figure("peer", &migration.peer);
                page.traffic(&migration.totals, migration.begun.elapsed());
            }
        }
        writer.write(path, page);
    }

    fn note(&mut self, note: &str) {
        self.progress.clear();
        say::note(note);
    }

    /// A line about one of several migrations, or the only one.
    fn of(&self, migration: &Migration) -> String {
        let is_one_of_many = self.several || migration.number > 1 || self.running.len() > 1;
        match (&migration.name, is_one_of_many) {
            (Some(name), true) => format!("migration {}, guest {name}: ", migration.number),
            (Some(name), false) => format!("guest {name}: "),
            (None, true) => {
                let vm = migration.vm.text().map(|uuid| format!(", VM {uuid}"));
                let vm = vm.unwrap_or_default();
                format!("migration {} ({}{vm}): ", migration.number, migration.route)
            }
            (None, false) => String::new(),
        }
    }

    fn begun(&mut self, mut migration: Migration) {
        if self.reports.is_some() {
            migration.record = Some(Box::new(Record::new()));
        }
        let text = format!(
            "{}a migration begins, from {}",
            self.of(&migration),
            migration.peer
        );
        self.counters.begun();
        self.running.push(migration);
        self.note(&text);
    }

    fn update(&mut self, number: u64, update: Update) {
        let Some(index) = self
            .running
            .iter()
            .position(|migration| migration.number == number)
        else {
            return;
        };
        match update {
            Update::Waits(waits) => {
                if let Some(migration) = self.running.get_mut(index) {
                    migration.pace.waits(&waits);
                    if let Some(record) = &mut migration.record {
                        record.waits(&waits);
                    }
                }
            }
            Update::Progress(totals) => {
                let mut is_due = false;
                if let Some(migration) = self.running.get_mut(index) {
                    self.counters.moved(&migration.totals, &totals);
                    let at = migration.begun.elapsed();
                    migration.totals = totals;
                    migration.pace.progress(at, &totals);
                    if let Some(record) = &mut migration.record {
                        record.progress(at, &totals, None);
                    }
                    is_due = migration.told.elapsed() >= LINE_EVERY;
                    if is_due {
                        migration.told = Instant::now();
                    }
                }
                if self.progress.is_shown() {
                    self.progress.show(Running(&self.running));
                } else if let (Some(migration), true) = (self.running.get(index), is_due) {
                    say::note(format_args!("{}{}", self.of(migration), Live(migration)));
                }
            }
            Update::Note(note) => {
                if let Some(migration) = self.running.get_mut(index)
                    && let Some(record) = &mut migration.record
                {
                    record.note(migration.begun.elapsed(), note);
                }
                let of = self.running.get(index).map(|migration| self.of(migration));
                self.note(&format!("{}{note}", of.unwrap_or_default()));
            }
            Update::Effort(change) if self.args.verbose => {
                let of = self.running.get(index).map(|migration| self.of(migration));
                self.note(&format!("{}{change}", of.unwrap_or_default()));
            }
            _ => {}
        }
    }

    fn ended(&mut self, number: u64, outcome: Result<MigrationReport, Ended>) -> Outcome {
        let index = self
            .running
            .iter()
            .position(|migration| migration.number == number);
        let of = index
            .and_then(|index| self.running.get(index))
            .map(|migration| self.of(migration));
        let mut migration = index.map(|index| self.running.remove(index));
        let record = migration
            .as_mut()
            .and_then(|migration| migration.record.take());
        if let Some(migration) = &migration {
            let took = migration.begun.elapsed();
            self.counters.ended(&migration.totals, &outcome, took);
        }
        self.progress.clear();
        let of = of.unwrap_or_default();
        match outcome {
            Ok(report) => {
                let reported = record.is_some().then(|| report.clone());
                let summary = Summary::new(report, migration.as_ref());
                if let (Some(record), Some(migration), Some(report)) =
                    (record, &migration, reported)
                {
                    let ending = match report.confirmed {
                        Some(true) => Ending::Whole,
                        _ => Ending::Unconfirmed,
                    };
                    let words = summary.to_string();
                    self.page(migration, *record, ending, words, Some(&report));
                }
                for remark in &summary.remarks {
                    say::note(format_args!("{of}{remark}"));
                }
                let connect = migration.map(|migration| migration.route.connect.protocol);
                let method = self.args.codec.method(connect == Some(Protocol::Trunk));
                if method != Method::None && summary.was_passed_on() {
                    say::note(format_args!(
                        "{of}the source's pages came in the outgoing method, and were passed on as \
                         they are: --recode compresses them anew"
                    ));
                }
                say::report(&summary, self.args.json);
                Ok(())
            }
            Err(ended) => {
                let connect = migration
                    .as_ref()
                    .map(|migration| migration.route.connect.protocol);
                let to_trunk = connect == Some(Protocol::Trunk);
                let method = self.args.codec.method(to_trunk);
                let failed = match &ended {
                    Ended::Failed(failure) => Failed::new(
                        say::chain(failure),
                        advice(method, connect, failure),
                        // This relay cannot know whether the destination has the guest.
                        (!failure.cause.is_unknown()).then_some(false),
                        migration.as_ref(),
                    ),
                    Ended::TooMany => Failed::new(
                        format!(
                            "{MOST_MIGRATIONS} migrations run already, and no more are taken: its guest stays at the source; \
                             start it again when others have ended"
                        ),
                        None,
                        Some(false),
                        migration.as_ref(),
                    ),
                    Ended::Panicked => Failed::new(
                        "a defect of this program ended this migration".to_owned(),
                        None,
                        Some(false),
                        migration.as_ref(),
                    ),
                };
                if let (Some(record), Some(migration)) = (record, &migration) {
                    let ending = ended.ending();
                    self.page(migration, *record, ending, failed.to_string(), None);
                }
                if self.args.json {
                    say::report_json(&failed);
                }
                Err(format!("{of}{failed}").into())
            }
        }
    }
}
