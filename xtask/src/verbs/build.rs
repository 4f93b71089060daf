//! `cargo xtask build`: builds both commands for release, and reports what they will use here.

use std::env::consts::ARCH;
use std::path::Path;

use iaa_detect::detect;
use multifd_codec::{Accel, Settings, encoder};
use multifd_wire::Method;
use qemu_lab::{Part, Root};

use crate::{Result, multifd, workspace};

pub fn run() -> Result<()> {
    println!("Building multifd and multifd-bench ...");
    let [program, bench] = [multifd::build()?, multifd::build_bench()?];
    let [program, bench] =
        [&program, &bench].map(|path| path.strip_prefix(workspace()).unwrap_or(path));

    println!("\n{}\n{}", program.display(), bench.display());
    println!(
        "One build for every {ARCH} processor: better instructions, libqpl and an IAA are looked for when it runs."
    );
    println!("\nWhat it will use here with --accel auto, and in brackets why nothing better:\n");
    for method in Method::ALL {
        let mut settings = Settings::default();
        settings.accel = Accel::Auto;
        match encoder(method, &settings) {
            Ok(encoder) => println!("  {:<7}{}", method.as_str(), encoder.backend()),
            // QEMU's other methods are forwarded, never written.
            Err(error) if error.is_method() => {}
            Err(error) => println!("  {:<7}{error}", method.as_str()),
        }
    }
    println!();
    let report = detect(Path::new("/"));
    if !report.is_ready() {
        println!(
            "{}; what removes that: cargo xtask detect",
            report.verdict()
        );
    }
    if let Some(root) = Root::of(Part::Qpl) {
        println!(
            "With the libqpl of `cargo xtask setup`, which is not installed, it is started by\n"
        );
        println!("  {} \\", root.loader().display());
        println!("    --library-path {} \\", root.library_path());
        println!("    {} relay --accel qpl ...\n", program.display());
    }
    println!("Next: {} relay --help", program.display());
    Ok(())
}
