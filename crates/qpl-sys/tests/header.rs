//! The Rust declarations against the C header, if libqpl-dev is present.
//!
//! A C program that prints sizes, offsets and constants is generated from the list it is compared
//! with. The header is searched for in the directory `QPL_INCLUDE`, or else in the C compiler's own
//! search path.

mod support;

use std::fmt::Write as _;
use std::mem::{align_of, offset_of, size_of};
use std::path::Path as FsPath;
use std::process::Command;

use qpl_sys::{
    Allocator, CompressionLevel, DecompressEnd, Flags, Histogram, HuffmanTable, Job, JobData,
    MiniBlockSize, NumaId, Operation, Path, StatisticsMode, Status, TableType,
};

use support::not_run;

/// A C expression of integer type, and its value in Rust.
type Fact = (String, i64);

fn number<T: TryInto<i64>>(value: T) -> i64 {
    value
        .try_into()
        .ok()
        .expect("every size and constant fits 64 bits")
}

macro_rules! structure {
    ($facts:ident, $rust:ty, $c:literal, [$($field:ident $(as $c_field:literal)?),* $(,)?]) => {
        $facts.push((format!("sizeof({})", $c), number(size_of::<$rust>())));
        $facts.push((format!("_Alignof({})", $c), number(align_of::<$rust>())));
        $(
            #[allow(unused_mut, unused_assignments)]
            let mut c_field = stringify!($field);
            $(c_field = $c_field;)?
            $facts.push((format!("offsetof({}, {c_field})", $c), number(offset_of!($rust, $field))));
        )*
    };
}

macro_rules! constants {
    [$($rust:expr => $c:literal),* $(,)?] => {
        vec![$(($c.to_owned(), number($rust))),*]
    };
}

fn structures() -> Vec<Fact> {
    let mut facts = Vec::new();
    structure!(
        facts,
        Job,
        "qpl_job",
        [
            next_in_ptr,
            available_in,
            total_in,
            next_out_ptr,
            available_out,
            total_out,
            op,
            flags,
            crc,
            last_bit_offset,
            level,
            statistics_mode,
            huffman_table,
            dictionary,
            mini_block_size,
            idx_array,
            idx_max_size,
            decomp_end_processing,
            ignore_start_bits,
            ignore_end_bits,
            numa_id,
            data_ptr,
        ]
    );
    structure!(facts, JobData, "qpl_data", [path]);
    structure!(
        facts,
        Histogram,
        "qpl_histogram",
        [literal_lengths, distances]
    );
    structure!(facts, Allocator, "allocator_t", [allocate as "allocator", free as "deallocator"]);
    structure!(facts, HuffmanTable, "qpl_huffman_table_t", []);
    structure!(facts, Path, "qpl_path_t", []);
    structure!(facts, Operation, "qpl_operation", []);
    structure!(facts, CompressionLevel, "qpl_compression_levels", []);
    structure!(facts, StatisticsMode, "qpl_statistics_mode", []);
    structure!(facts, MiniBlockSize, "qpl_mini_block_size", []);
    structure!(facts, TableType, "qpl_huffman_table_type_e", []);
    structure!(facts, Status, "qpl_status", []);
    facts
}

fn constants() -> Vec<Fact> {
    let mut facts = constants![
        Path::AUTO.0 => "qpl_path_auto",
        Path::HARDWARE.0 => "qpl_path_hardware",
        Path::SOFTWARE.0 => "qpl_path_software",
        Operation::DECOMPRESS.0 => "qpl_op_decompress",
        Operation::COMPRESS.0 => "qpl_op_compress",
        CompressionLevel::DEFAULT.0 => "qpl_default_level",
        StatisticsMode::COMPRESSION.0 => "qpl_compression_mode",
        MiniBlockSize::NONE.0 => "qpl_mblk_size_none",
        DecompressEnd::STOP_AND_CHECK_FOR_BFINAL_EOB.0 => "qpl_stop_and_check_for_bfinal_eob",
        DecompressEnd::DONT_STOP_OR_CHECK.0 => "qpl_dont_stop_or_check",
        DecompressEnd::CHECK_FOR_ANY_EOB.0 => "qpl_check_for_any_eob",
        NumaId::SOCKET.0 => "QPL_DEVICE_NUMA_ID_SOCKET",
        NumaId::CURRENT.0 => "QPL_DEVICE_NUMA_ID_CURRENT",
        NumaId::ANY.0 => "QPL_DEVICE_NUMA_ID_ANY",
        TableType::COMBINED.0 => "combined_table_type",
        TableType::COMPRESSION.0 => "compression_table_type",
        Flags::FIRST.0 => "QPL_FLAG_FIRST",
        Flags::LAST.0 => "QPL_FLAG_LAST",
        Flags::DYNAMIC_HUFFMAN.0 => "QPL_FLAG_DYNAMIC_HUFFMAN",
        Flags::OMIT_VERIFY.0 => "QPL_FLAG_OMIT_VERIFY",
        Flags::ZLIB_MODE.0 => "QPL_FLAG_ZLIB_MODE",
        Flags::CANNED_MODE.0 => "QPL_FLAG_CANNED_MODE",
    ];
    // Statuses are below 512.
    let named = (0..512)
        .map(Status)
        .filter_map(|status| Some((status.name()?, status.0)));
    facts.extend(named.map(|(name, number)| (name.to_owned(), i64::from(number))));
    facts
}

#[test]
fn declarations_agree_with_the_c_header() {
    let include = std::env::var_os("QPL_INCLUDE");
    if let Err(why) = header_is_there(include.as_deref().map(FsPath::new)) {
        return not_run("declarations_agree_with_the_c_header", &why);
    }
    let facts: Vec<Fact> = structures().into_iter().chain(constants()).collect();

    let mut source = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include <qpl/qpl.h>\nint main(void) {\n",
    );
    for (expression, _) in &facts {
        writeln!(source, "printf(\"%lld\\n\", (long long)({expression}));")
            .expect("a string takes any text");
    }
    source.push_str("return 0; }\n");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = directory.path().join("facts");
    let source_file = directory.path().join("facts.c");
    std::fs::write(&source_file, source).expect("the temporary directory is writable");
    // Only sizes and enumerations: the program needs the header but not the library.
    let output = compiler(include.as_deref().map(FsPath::new))
        .arg("-o")
        .arg(&program)
        .arg(&source_file)
        .output()
        .expect("cc was seen");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = Command::new(&program)
        .output()
        .expect("the program was just built");

    let printed: Vec<i64> = String::from_utf8(output.stdout)
        .expect("digits")
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    assert_eq!(printed.len(), facts.len());
    let wrong: Vec<_> = facts
        .iter()
        .zip(&printed)
        .filter(|((_, rust), c)| rust != *c)
        .collect();
    assert!(
        wrong.is_empty(),
        "(C expression, Rust's number), C's number: {wrong:#?}"
    );
}

fn compiler(include: Option<&FsPath>) -> Command {
    let mut command = Command::new("cc");
    // 58 is marked deprecated in the header; its number is compared anyway.
    command.args(["-std=c11", "-Wno-deprecated-declarations"]);
    if let Some(include) = include {
        command.arg("-I").arg(include);
    }
    command
}

fn header_is_there(include: Option<&FsPath>) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source_file = directory.path().join("probe.c");
    std::fs::write(&source_file, "#include <qpl/qpl.h>\n")
        .expect("the temporary directory is writable");
    match compiler(include)
        .arg("-fsyntax-only")
        .arg(&source_file)
        .output()
    {
        Err(error) => Err(format!("no C compiler: {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => Err(
            "qpl/qpl.h is missing; package libqpl-dev has it, and QPL_INCLUDE says where it is"
                .to_owned(),
        ),
    }
}
