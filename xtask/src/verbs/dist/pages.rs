//! Manual pages: one for each command and each of its subcommands.

use std::fmt::Write as _;

use clap::Command;
use clap_mangen::Man;

use crate::Result;

/// A page and the name of its file.
pub struct Page {
    pub file: String,
    pub text: Vec<u8>,
}

/// The pages of a command and of its public subcommands.
pub fn of(command: Command) -> Result<Vec<Page>> {
    let mut command = in_full(command.disable_help_subcommand(true));
    // Names the subcommands' pages after both, such as multifd-relay.
    command.build();
    let subcommands = command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set());
    let mut pages = Vec::new();
    for subcommand in subcommands {
        pages.push(page(subcommand, Some(&command))?);
        // Such as `tls init`.
        for inner in subcommand.get_subcommands() {
            pages.push(page(inner, Some(&command))?);
        }
    }
    pages.push(page(&command, None)?);
    Ok(pages)
}

/// A command with all options that its short help leaves out: a page has no short form.
fn in_full(command: Command) -> Command {
    command
        .mut_args(|argument| argument.hide_short_help(false))
        .mut_subcommands(in_full)
}

fn page(command: &Command, parent: Option<&Command>) -> Result<Page> {
    let version = parent.unwrap_or(command).get_version();
    let name = command.get_display_name().unwrap_or(command.get_name());
    let whole = parent.unwrap_or(command).get_name();
    let man = Man::new(command.clone())
        .source(format!("{whole} {}", version.unwrap_or_default()))
        .manual("Live migration");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(words) = command.get_after_help() {
        text.extend(after_help(&words.to_string()).into_bytes());
    }
    text.extend(see_also(command, parent).into_bytes());
    Ok(Page {
        file: format!("{name}.1"),
        text,
    })
}

/// The text below a command's options: a section of notes, and one of examples, which keeps its
/// lines. (clap_mangen would fill the lines of examples like those of a paragraph.)
fn after_help(words: &str) -> String {
    let (notes, examples): (Vec<&str>, Vec<&str>) = words
        .split("\n\n")
        .partition(|paragraph| !paragraph.starts_with("Example"));
    let mut text = String::new();
    if !notes.is_empty() {
        text.push_str(".SH NOTES\n");
        for note in notes {
            text.push_str(".PP\n");
            note.lines().for_each(|line| push_line(&mut text, line));
        }
    }
    if !examples.is_empty() {
        text.push_str(".SH EXAMPLES\n");
        for example in examples {
            text.push_str(".PP\n.nf\n");
            // The word `Example` alone is already the section's title.
            let lines = example.lines().filter(|line| *line != "Example:");
            lines.for_each(|line| push_line(&mut text, line.trim()));
            text.push_str(".fi\n");
        }
    }
    text
}

/// References to the pages of a command's subcommands, or of its parent.
fn see_also(command: &Command, parent: Option<&Command>) -> String {
    let mut names: Vec<&str> = command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set())
        .filter_map(Command::get_display_name)
        .collect();
    names.extend(parent.map(Command::get_name));
    let mut text = ".SH SEE ALSO\n".to_owned();
    for (index, name) in names.iter().enumerate() {
        let comma = if index + 1 < names.len() { "," } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, ".BR {} (1){comma}", escaped(name));
    }
    text
}

fn push_line(text: &mut String, line: &str) {
    // At the start of a line, these two would make it a request.
    if line.starts_with(['.', '\'']) {
        text.push_str("\\&");
    }
    text.push_str(&escaped(line));
    text.push('\n');
}

/// Escapes text for roff: a plain `-` would become a hyphen, which cannot be pasted into a shell.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(page: &Page) -> &str {
        std::str::from_utf8(&page.text).unwrap()
    }

    #[test]
    fn each_subcommand_that_people_call_has_a_page() {
        let files = |command| {
            let pages = of(command).unwrap();
            let files: Vec<_> = pages.into_iter().map(|page| page.file).collect();
            files.join(" ")
        };
        assert_eq!(
            files(multifd_cli::definition()),
            "multifd-migrate.1 multifd-accept.1 multifd-relay.1 multifd-receive.1 multifd-record.1 \
             multifd-replay.1 multifd-inspect.1 multifd-detect.1 multifd-doctor.1 \
             multifd-tls.1 multifd-tls-init.1 multifd.1"
        );
        assert_eq!(
            files(multifd_bench::command::definition()),
            "multifd-bench-migrate.1 multifd-bench-plan.1 multifd-bench-send.1 multifd-bench.1"
        );
    }

    #[test]
    fn a_page_has_its_options_and_its_examples_line_by_line() {
        let pages = of(multifd_cli::definition()).unwrap();
        let relay = text(&pages[2]);
        assert!(relay.starts_with(".ie \\n(.g"), "{relay}");
        assert!(relay.contains(".TH multifd-relay 1"), "{relay}");
        assert!(relay.contains("\\fB\\-\\-routes\\fR"), "{relay}");
        let example = "multifd relay \\-\\-listen trunk:0.0.0.0:4444 \\-\\-connect";
        assert!(relay.contains(example), "{relay}");
        // The short help leaves this option out; the page does not.
        assert!(relay.contains("Serve only the client CLIENT"), "{relay}");
        assert!(relay.contains(".BR multifd (1)\n"), "{relay}");
        let whole = text(pages.last().unwrap());
        assert!(whole.contains(".BR multifd\\-relay (1),\n"), "{whole}");
    }

    #[test]
    fn words_are_no_requests() {
        let made = after_help("'tis a\\b\n.fi\n\nExample:\n  x --y");
        let expected =
            ".SH NOTES\n.PP\n\\&'tis a\\eb\n\\&.fi\n.SH EXAMPLES\n.PP\n.nf\nx \\-\\-y\n.fi\n";
        assert_eq!(made, expected);
    }
}
