//! A link between two network namespaces, which requires special rights.

use std::path::Path;
use std::process::Command;

use multifd_bench::links::{Link, LinkEnd};
use qemu_lab::not_run;

/// The path of the end's namespace, as an argument for `nsenter`.
fn namespace(end: &LinkEnd) -> String {
    let command = end.command(&Command::new("true"));
    let mut arguments = command
        .get_args()
        .map(|word| word.to_string_lossy().into_owned());
    let namespace = arguments.find_map(|word| word.strip_prefix("--net=").map(str::to_owned));
    namespace.expect("a namespace")
}

#[test]
fn a_link_has_a_rate_and_leaves_nothing() {
    let link = match Link::new("100mbit") {
        Ok(link) => link,
        Err(error) => {
            // The error names what is missing, so that it can be fixed.
            eprintln!("{error}");
            not_run("unshare, ip and tc, and the right to make network namespaces with them");
            return;
        }
    };
    for end in link.ends() {
        let shown = end
            .command(Command::new("tc").args(["qdisc", "show"]))
            .output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        assert!(
            shown.contains("tbf") && shown.contains("100Mbit"),
            "{shown}"
        );
    }
    let namespaces = link.ends().each_ref().map(namespace);
    assert!(namespaces.iter().all(|path| Path::new(path).exists()));
    drop(link);
    assert!(namespaces.iter().all(|path| !Path::new(path).exists()));
}
