//! `multifd migrate` and `multifd accept`.

mod args;
mod tell;

use std::path::{Path, PathBuf};
use std::time::Duration;

use multifd_operate::settings::{Plan, Wish};
use multifd_operate::{Failure, destination, source};
use multifd_relay::leg::{Encryption, EncryptionOptions, LegAddress, Protocol, Rule};
use multifd_relay::relay::RelayConfig;
use multifd_transport::Address;
use multifd_wire::Method;

pub(crate) use self::args::{AcceptArgs, EndArgs, MigrateArgs};
use self::tell::{Good, Teller, failed};
use crate::codec::usual_accel;
use crate::page::{Page, Writer};
use crate::process::Outcome;
use crate::relay::{Route, announce, memory, refuse_exposed};
use crate::sandbox::Sandbox;
use crate::say;
use crate::signals::Signals;

/// Sends a guest.
pub(crate) fn migrate(args: &MigrateArgs, sandbox: &Sandbox) -> Outcome {
    let end = &args.end;
    let codec = args.codec.codec(true)?;
    if args.cpus.is_some() && !codec.auto {
        return Err("--cpus needs --effort auto".into());
    }
    let mut config = RelayConfig::new(args.to.clone(), codec.method);
    config.settings = codec.settings;
    config.auto = codec.auto;
    config.processors = args.cpus;
    config.name.clone_from(&args.name);
    config.trunk_channels = args.trunk_channels;
    config.rate_limit.clone_from(&args.max_rate);
    let mut wish = Wish::new(end.channels.get());
    wish.postcopy = args.postcopy_after.is_some();
    wish.max_bandwidth = Some(args.max_bandwidth);
    wish.downtime_limit = Some(Duration::from_millis(args.downtime_limit.into()));
    let mut options = EncryptionOptions::default();
    options.hostname.clone_from(&args.tls_hostname);
    let route = Route {
        listen: beside(),
        connect: args.to.clone(),
    };
    prepare(end, &mut config, &route, &args.to, options)?;
    let mut order = source::Order::new(end.qmp.clone(), config, wish);
    order.timeout = (args.timeout > 0).then(|| Duration::from_secs(args.timeout.into()));
    order.postcopy_after = args.postcopy_after.map(|after| seconds(after.get()));
    order.socket_dir.clone_from(&end.socket_dir);
    if end.dry_run {
        return dry_run(end, "source", source::plan(&order));
    }
    let report = end.report.as_deref().map(Report::prepare).transpose()?;
    announce(&order.relay, args.codec.accel().1)?;
    say::note(sandbox);
    let signals = Signals::install()?;
    let mut teller = Teller::new(end.json_lines);
    let outcome = source::migrate(&order, &signals.cancel(), &mut |news| teller.tell(news));
    let title = match &args.name {
        Some(name) => format!("Migration of {} to {}", name.as_str(), args.to),
        None => format!("Migration to {}", args.to),
    };
    conclude(end, teller, report, title, outcome.map(Good::Moved))
}

/// Takes a guest.
pub(crate) fn accept(args: &AcceptArgs, sandbox: &Sandbox) -> Outcome {
    let end = &args.end;
    let mut config = RelayConfig::new(beside(), Method::None);
    config.settings.accel = usual_accel();
    let mut options = EncryptionOptions::default();
    options.rules = args.allow.iter().map(|text| Rule::parse(text)).collect();
    if !args.allow.is_empty() && !args.listen.tls {
        return Err(format!(
            "--allow has no effect on {}: only clients of an encrypted leg have a certificate",
            args.listen
        )
        .into());
    }
    let route = Route {
        listen: args.listen.clone(),
        connect: beside(),
    };
    prepare(end, &mut config, &route, &args.listen, options)?;
    let mut wish = Wish::new(end.channels.get());
    wish.postcopy = args.postcopy;
    let mut order = destination::Order::new(end.qmp.clone(), args.listen.clone(), config, wish);
    order.socket_dir.clone_from(&end.socket_dir);
    if end.dry_run {
        return dry_run(end, "destination", destination::plan(&order));
    }
    let report = end.report.as_deref().map(Report::prepare).transpose()?;
    say::note(sandbox);
    let signals = Signals::install()?;
    let mut teller = Teller::new(end.json_lines);
    let outcome = destination::accept(&order, &signals.cancel(), &mut |news| teller.tell(news));
    let title = format!("Migration to {}", args.listen);
    conclude(end, teller, report, title, outcome.map(Good::Arrived))
}

/// Tells how a migration has ended, and writes the page about it.
fn conclude(
    end: &EndArgs,
    mut teller: Teller,
    report: Option<Report<'_>>,
    title: String,
    outcome: Result<Good, Failure>,
) -> Outcome {
    teller.clear();
    let page = report
        .is_some()
        .then(|| teller.page(title, outcome.as_ref()));
    let told = match outcome {
        Ok(good) => {
            teller.well(&good);
            Ok(())
        }
        Err(failure) => Err(failed(&failure, end.json_lines).into()),
    };
    Report::write(report, page);
    told
}

/// The place of the page about a migration.
struct Report<'a> {
    path: &'a Path,
    writer: Writer,
}

impl<'a> Report<'a> {
    /// Refuses what can be seen before the migration.
    fn prepare(path: &'a Path) -> Result<Self, String> {
        let name = say::printable_path(path);
        if path.symlink_metadata().is_ok() {
            return Err(format!(
                "--report: {name} is there already: remove it, or choose another name"
            ));
        }
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        if folder.is_some_and(|folder| !folder.is_dir()) {
            return Err(format!("--report: there is no folder for {name}: make it"));
        }
        let writer = Writer::start().map_err(|error| format!("--report: no thread: {error}"))?;
        Ok(Self { path, writer })
    }

    fn write(report: Option<Self>, page: Option<Page>) {
        if let (Some(Self { path, writer }), Some(page)) = (report, page) {
            writer.write(path.to_owned(), page);
            writer.finish();
        }
    }
}

/// Prepares the relay: legs, encryption, memory. One leg is `trunk`; the other one leads to the
/// QEMU here.
fn prepare(
    end: &EndArgs,
    config: &mut RelayConfig,
    route: &Route,
    trunk: &LegAddress,
    mut options: EncryptionOptions,
) -> Outcome {
    if trunk.protocol != Protocol::Trunk {
        return Err(format!(
            "{trunk} is no trunk: write trunk:HOST:PORT, or trunk+tcp:HOST:PORT and trunk+unix:PATH \
             without encryption"
        )
        .into());
    }
    if trunk.needs_name() {
        return Err(format!("{trunk} has a place for a name, and one guest needs none").into());
    }
    refuse_exposed(trunk, end.insecure)?;
    options.folder.clone_from(&end.tls_dir);
    config.encryption = Encryption::open(&route.listen, &route.connect, &options)
        .map_err(|error| say::chain(&error))?;
    config.encryption.warnings().iter().for_each(say::note);
    if !end.dry_run {
        memory::bound(
            end.delta_memory,
            std::slice::from_ref(route),
            config.compression,
        )?;
    }
    Ok(())
}

/// The leg between a relay and the QEMU beside it, before its socket has a name.
fn beside() -> LegAddress {
    LegAddress::qemu(Address::Unix(PathBuf::new()))
}

/// Prints what would be set.
fn dry_run(end: &EndArgs, side: &str, plan: Result<Plan, Failure>) -> Outcome {
    let plan = plan.map_err(|failure| failed(&failure, end.json_lines))?;
    tell::plan(&plan, side, &end.qmp, end.json_lines)?;
    Ok(())
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}
