//! `multifd detect`.

use iaa_detect::detect;

use crate::args::DetectArgs;
use crate::process::Outcome;
use crate::say;

/// Examines the machine.
pub(crate) fn run(args: &DetectArgs) -> Outcome {
    if !args.root.is_dir() {
        return Err(format!("{} is no folder", args.root.display()).into());
    }
    let report = detect(&args.root);
    if args.json {
        say::json(&report)?;
    } else {
        say::result(report.to_string().trim_end())?;
    }
    Ok(())
}
