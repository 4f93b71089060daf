//! The command with the real libqpl, in a process of its own.

use std::process::Command;

use iaa_sim::{Settings, VARIABLE, library_path};
use qemu_lab::{Part, Root, require};
use serde_json::Value;

use crate::support::program;

/// Environment variable: a program with options under which the relays run, such as valgrind.
const UNDER: &str = "MULTIFD_UNDER";

/// libqpl as `cargo xtask setup` brings it. It needs a newer C library than this program may be
/// running on, so only the relays run on it.
pub struct Libqpl(Root);

impl Libqpl {
    /// libqpl, for a test that cannot do without it: see [`require`].
    #[track_caller]
    pub fn require() -> Option<Libqpl> {
        require(Part::Qpl).then(|| Root::of(Part::Qpl).map(Libqpl))?
    }

    /// A command that starts `multifd` with libqpl.
    pub fn multifd(&self) -> Command {
        let command = self.0.command(program());
        let Ok(under) = std::env::var(UNDER) else {
            return command;
        };
        let mut words = under.split_whitespace();
        let mut outer = Command::new(words.next().expect("a program"));
        outer.args(words).arg(command.get_program());
        outer.args(command.get_args());
        outer
    }

    /// A command that starts `multifd` with libqpl, and on a simulated machine of its own.
    pub fn multifd_on(&self, machine: &Settings) -> Command {
        let mut command = self.multifd();
        let simulator = library_path().expect("Cargo builds the shared object");
        command
            .env("LD_PRELOAD", simulator)
            .env(VARIABLE, machine.to_string());
        command
    }
}

/// Method and options of a relay that compresses every page by itself.
pub type Paged = (&'static str, &'static [&'static str]);
/// In the format's own code.
pub const FIXED: Paged = ("qpl", &["--huffman", "fixed"]);
/// In a code of each page's own.
pub const DYNAMIC: Paged = ("qpl", &["--huffman", "dynamic"]);
/// In a code that both ends know.
pub const CANNED: Paged = ("canned", &[]);

/// What a relay says that its codecs of one direction have done.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    pub method: String,
    pub backend: String,
    pub hardware: u64,
    pub software: u64,
    pub raw: u64,
}

impl Done {
    /// How the pages that came were read.
    pub fn decoding(report: &Value) -> Done {
        Done::new(report, "decoded")
    }

    /// How the pages that went out were written.
    pub fn encoding(report: &Value) -> Done {
        Done::new(report, "encoded")
    }

    fn new(report: &Value, direction: &str) -> Done {
        let done = &report[direction];
        let text = |key: &str| {
            let text = done[key].as_str();
            text.unwrap_or_else(|| panic!("{report}")).to_owned()
        };
        let count = |key: &str| done[key].as_u64().unwrap_or_else(|| panic!("{report}"));
        let done = Done {
            method: text("method"),
            backend: text("backend"),
            hardware: count("hardware"),
            software: count("software"),
            raw: count("raw"),
        };
        // Each page went one way.
        let pages = done.hardware + done.software + done.raw;
        assert_eq!(report["pages"], pages, "{report}");
        done
    }
}
