//! Options from a file: `--config FILE`.
//!
//! A key is the name of a long option. Each becomes an argument, so the command line's own parsers
//! read the values, and refuse them with the same words. An option of the command line replaces the
//! file's.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::say;

/// The option that names the file.
const CONFIG: &str = "config";

/// The largest file. One with a thousand routes has a tenth of it.
const MOST_BYTES: u64 = 1 << 20;

/// A fault of the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    file: PathBuf,
    /// From 1 on.
    line: Option<usize>,
    words: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&say::printable_path(&self.file))?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.words)
    }
}

/// Adds the options of the file that `args` name, if they name one. The first of `args` is the
/// program.
///
/// # Errors
/// The first fault of the file.
pub(crate) fn expand(definition: &Command, args: Vec<OsString>) -> Result<Vec<OsString>, Fault> {
    let Some((subcommand, given)) = given(definition, &args) else {
        return Ok(args);
    };
    let Some(file) = given.get_one::<PathBuf>(CONFIG) else {
        return Ok(args);
    };
    let text = read(file)?;
    let options = options(&subcommand, file, &text, &|id| {
        given.value_source(id) == Some(ValueSource::CommandLine)
    })?;
    let (start, rest) = args.split_at_checked(2).unwrap_or((&args, &[]));
    Ok([start, &options, rest].concat())
}

/// The subcommand and what was given for it, if it has a file. Faults of the command line are left
/// to the parser, which reads it later.
fn given(definition: &Command, args: &[OsString]) -> Option<(Command, ArgMatches)> {
    let name = args.get(1)?.to_str()?;
    let subcommand = definition.find_subcommand(name)?.clone();
    subcommand
        .get_arguments()
        .find(|arg| arg.get_id() == CONFIG)?;
    let lenient = subcommand.clone().ignore_errors(true);
    let given = lenient.try_get_matches_from(args.get(1..)?).ok()?;
    Some((subcommand, given))
}

fn read(file: &Path) -> Result<String, Fault> {
    let fault = |words: String| Fault {
        file: file.to_owned(),
        line: None,
        words,
    };
    let mut bytes = Vec::new();
    let opened = File::open(file);
    opened
        .and_then(|opened| opened.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| fault(format!("cannot read it: {error}")))?;
    if bytes.len() as u64 > MOST_BYTES {
        let words = format!("it has more than {} KiB", MOST_BYTES >> 10);
        return Err(fault(words));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = error.as_bytes().get(..valid).unwrap_or_default();
        Fault {
            line: Some(1 + before.iter().filter(|byte| **byte == b'\n').count()),
            ..fault("it is no UTF-8 text".to_owned())
        }
    })
}

/// The file's options as arguments, but for those that are `given` already.
fn options(
    command: &Command,
    file: &Path,
    text: &str,
    given: &dyn Fn(&str) -> bool,
) -> Result<Vec<OsString>, Fault> {
    let fault = |at: Range<usize>, words: String| Fault {
        file: file.to_owned(),
        line: Some(line_of(text, at.start)),
        words,
    };
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().unwrap_or_default();
        fault(at, error.message().replace('\n', ", "))
    })?;
    // The order of the file, so that its first fault is told, and routes keep their order.
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut options = Vec::new();
    for (key, value) in entries {
        let name = key.get_ref();
        let option = command.get_arguments().find(|arg| is_option(arg, name));
        let option = option.ok_or_else(|| fault(key.span(), unknown(command, name)))?;
        let mut arguments = Vec::new();
        for (at, argument) in
            arguments_of(option, name, value).map_err(|(at, words)| fault(at, words))?
        {
            check(command, &argument).map_err(|words| fault(at, words))?;
            arguments.push(argument);
        }
        if !given(option.get_id().as_str()) {
            options.extend(arguments);
        }
    }
    Ok(options)
}

/// Whether this is the option with that long name, and may stand in a file.
fn is_option(arg: &Arg, name: &str) -> bool {
    let is_allowed = !matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    );
    is_allowed && arg.get_id() != CONFIG && arg.get_long() == Some(name)
}

fn unknown(command: &Command, name: &str) -> String {
    let names = command.get_arguments().filter_map(|arg| {
        let long = arg.get_long()?;
        is_option(arg, long).then_some(long)
    });
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    format!(
        "`{}` is no option of `multifd {}`; it has {}",
        name.escape_debug(),
        command.get_name(),
        names.join(", ")
    )
}

type Located<T> = (Range<usize>, T);

/// The arguments that a key stands for, each with its place.
fn arguments_of(
    option: &Arg,
    name: &str,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<Located<OsString>>, Located<String>> {
    let argument = |value: &Spanned<DeValue<'_>>, text: &str| {
        (value.span(), OsString::from(format!("--{name}={text}")))
    };
    let words = |takes: &str| {
        let found = kind(value.get_ref());
        Err((
            value.span(),
            format!("`{name}` takes {takes}, and this is {found}"),
        ))
    };
    let is_list = matches!(option.get_action(), ArgAction::Append);
    match (option.get_action(), value.get_ref()) {
        (ArgAction::SetTrue, DeValue::Boolean(is_on)) => {
            let flag = (value.span(), OsString::from(format!("--{name}")));
            Ok(is_on.then_some(flag).into_iter().collect())
        }
        (ArgAction::SetTrue, _) => words("true or false"),
        (ArgAction::Append, DeValue::Array(all)) => {
            let all = all.iter().map(|one| match one.get_ref() {
                DeValue::String(text) => Ok(argument(one, text)),
                other => {
                    let found = kind(other);
                    let words = format!("`{name}` takes a list of strings, and this is {found}");
                    Err((one.span(), words))
                }
            });
            all.collect()
        }
        (_, DeValue::String(text)) => Ok(vec![argument(value, text)]),
        (_, DeValue::Integer(number)) if !is_list => Ok(vec![argument(value, &number.to_string())]),
        (_, DeValue::Float(number)) if !is_list => Ok(vec![argument(value, number.as_str())]),
        _ if is_list => words("a list of strings"),
        _ => words("a string or a number"),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or a time: put it in quotes",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Lets the command line's own parser read one argument. Others may be missing then.
fn check(command: &Command, argument: &OsStr) -> Result<(), String> {
    let name = OsStr::new(command.get_name());
    let Err(error) = command.clone().try_get_matches_from([name, argument]) else {
        return Ok(());
    };
    if matches!(
        error.kind(),
        ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict
    ) {
        return Ok(());
    }
    let words = error.render().to_string();
    let words = words.strip_prefix("error: ").unwrap_or(&words);
    // Behind the fault stands how to get help on the command line.
    let fault = words.split("\n\n").next().unwrap_or(words);
    let lines: Vec<_> = fault.lines().map(str::trim).collect();
    Err(lines.join(" "))
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn relay() -> Command {
        let mut command = Cli::command();
        command.build();
        command.find_subcommand("relay").unwrap().clone()
    }

    fn read(text: &str) -> Result<Vec<String>, String> {
        let options = options(&relay(), Path::new("/etc/a.toml"), text, &|id| {
            id == "drain"
        });
        let text = |option: OsString| option.into_string().unwrap();
        options
            .map(|options| options.into_iter().map(text).collect())
            .map_err(|fault| fault.to_string())
    }

    #[test]
    fn keys_are_options_and_the_command_line_wins() {
        let text = r#"
            # A comment.
            connect = "trunk:dst:4444"   # behind a value
            listen = "unix:/run/src.sock"
            route = ["unix:/a=unix:/b", "unix:/c=unix:/d"]
            allow = "a=b"
            zstd-level = 3
            mode = 660
            cpus = 1.5
            drain = 7
            recode = true
            verify = false
            "verbose" = true
        "#;
        assert_eq!(
            read(text).unwrap(),
            [
                "--connect=trunk:dst:4444",
                "--listen=unix:/run/src.sock",
                "--route=unix:/a=unix:/b",
                "--route=unix:/c=unix:/d",
                "--allow=a=b",
                "--zstd-level=3",
                "--mode=660",
                "--cpus=1.5",
                "--recode",
                "--verbose",
            ]
        );
        assert_eq!(read("").unwrap(), [""; 0]);
    }

    #[test]
    fn a_fault_has_its_line_and_says_what_is_allowed() {
        for (text, line, words) in [
            (
                "\ncompresion = 'zstd'",
                2,
                "`compresion` is no option of `multifd relay`; it has accel, allow,",
            ),
            ("config = 'x'", 1, "`config` is no option"),
            ("help = true", 1, "`help` is no option"),
            (
                "drain = true",
                1,
                "`drain` takes a string or a number, and this is true or false",
            ),
            ("drain = 'x'", 1, "'x' for '--drain <S>'"),
            ("\n\ndrain = -1", 3, "'-1' for '--drain <S>'"),
            (
                "json = 'yes'",
                1,
                "`json` takes true or false, and this is a string",
            ),
            (
                "route = 5",
                1,
                "`route` takes a list of strings, and this is a number",
            ),
            (
                "route = [\n'unix:/a=unix:/b',\n'unix:/a']",
                3,
                "is no route: write LISTEN=CONNECT",
            ),
            (
                "route = ['unix:/a=unix:/b',\n7]",
                2,
                "takes a list of strings, and this is a number",
            ),
            (
                "listen = '/run/a.sock'",
                1,
                "write unix:PATH, tcp:HOST:PORT",
            ),
            (
                "compression = 'lz4'",
                1,
                "[possible values: none, zlib, zstd, qpl, canned, auto]",
            ),
            ("max-rate = '1kbit'", 1, "the lowest rate is 1 mbit"),
            ("mode = 0o600", 1, "modes are 000 to 777 in octal"),
            ("[relay]\ndrain = 1", 1, "`relay` is no option"),
            ("json = true\njson = true", 2, "duplicate key"),
            ("json = true\nlisten = \"unix:/a", 2, ""),
        ] {
            let fault = read(text).unwrap_err();
            let place = format!("/etc/a.toml, line {line}: ");
            assert!(fault.starts_with(&place), "{text}: {fault}");
            assert!(fault.contains(words), "{text}: {fault}");
            assert!(!fault.contains('\n'), "{text}: {fault}");
        }
    }

    #[test]
    fn arguments_without_a_file_stay_as_they_are() {
        for args in [
            &["multifd"][..],
            &["multifd", "relay", "--listen"],
            &["multifd", "relay", "--help"],
            &["multifd", "detect", "--config", "/no/such/file"],
        ] {
            let args: Vec<_> = args.iter().map(OsString::from).collect();
            assert_eq!(expand(&Cli::command(), args.clone()), Ok(args));
        }
        for (file, words) in [
            ("/no/such/file", "/no/such/file: cannot read it: "),
            ("/dev/zero", "/dev/zero: it has more than 1024 KiB"),
            ("/proc", "/proc: cannot read it: "),
        ] {
            let args = ["multifd", "relay", "--config", file].map(OsString::from);
            let fault = expand(&Cli::command(), args.to_vec()).unwrap_err();
            assert!(fault.to_string().starts_with(words), "{fault}");
        }
    }

    /// What stands in the package has no fault.
    #[test]
    fn the_example_is_sound() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/relay.toml");
        let example = std::fs::read_to_string(file).unwrap();
        let lines = example.lines();
        // Options that are commented out, too: they have no space behind `#`.
        let all = lines.map(|line| match line.strip_prefix('#') {
            Some(option) if !option.starts_with([' ', '#']) => option,
            _ => line,
        });
        let all: Vec<_> = all.collect();
        for text in [example.clone(), all.join("\n")] {
            assert!(!read(&text).unwrap().is_empty());
        }
    }
}
