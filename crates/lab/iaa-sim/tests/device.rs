//! The real libqpl on a healthy simulated device.

mod support;

use std::io::Read as _;

use flate2::Compression;
use flate2::read::{DeflateDecoder, DeflateEncoder, ZlibDecoder};
use qpl_sys::{DecompressEnd, Flags, Operation, Path, Status};

use support::bench::{Bench, PAGE, inflate};
use support::{HardwareJob, PACKED_ROOM, PATIENCE, Table, pages};

#[test]
fn pages_survive_on_the_device() {
    let Some(bench) = Bench::healthy("pages_survive_on_the_device") else {
        return;
    };
    for mode in [Flags::NONE, Flags::DYNAMIC_HUFFMAN, Flags::ZLIB_MODE] {
        for page in pages() {
            let mut job = bench.job();
            assert_eq!(job.fields().data_ptr.path, Path::HARDWARE);
            job.prepare_compress(mode, &page);
            assert_eq!(job.run(), Status::OK);
            assert_eq!(job.fields().crc, crc32fast::hash(&page));
            let packed = job.output().to_vec();
            let unpacked = match mode {
                Flags::ZLIB_MODE => inflate_zlib(&packed).expect("a zlib stream"),
                _ => inflate(&packed),
            };
            assert_eq!(unpacked, page);

            let wrapper = Flags(mode.0 & Flags::ZLIB_MODE.0);
            job.prepare(Operation::DECOMPRESS, wrapper, &packed, PAGE);
            assert_eq!(job.run(), Status::OK);
            assert_eq!(job.output(), page);
            assert_eq!(job.fields().crc, crc32fast::hash(&page));
        }
    }
    let counters = bench.device.counters();
    let pages = pages().len() as u64;
    assert_eq!(counters.compressions, 3 * pages);
    assert_eq!(
        counters.statistics, pages,
        "a dynamic page goes to the device twice"
    );
    assert_eq!(counters.decompressions, 3 * pages);
    assert_eq!(counters.successes, 7 * pages);
}

#[test]
fn the_call_that_waits_goes_to_the_device_too() {
    let Some(bench) = Bench::healthy("the_call_that_waits_goes_to_the_device_too") else {
        return;
    };
    for mode in [Flags::NONE, Flags::DYNAMIC_HUFFMAN] {
        for page in pages() {
            let mut job = bench.job();
            job.prepare_compress(mode, &page);
            assert_eq!(job.execute(), Status::OK);
            let packed = job.output().to_vec();
            assert_eq!(inflate(&packed), page);
            job.prepare(Operation::DECOMPRESS, Flags::NONE, &packed, PAGE);
            assert_eq!(job.execute(), Status::OK);
            assert_eq!(job.output(), page);
        }
    }
    let counters = bench.device.counters();
    assert_eq!(counters.compressions, counters.decompressions);
    assert_eq!(counters.statistics, pages().len() as u64);
}

/// libqpl 1.9.0 includes a hardware job's earlier pages in the Adler-32.
#[test]
fn a_zlib_trailer_is_right_only_on_a_fresh_job() {
    let Some(bench) = Bench::healthy("a_zlib_trailer_is_right_only_on_a_fresh_job") else {
        return;
    };
    let mut job = bench.job();
    let right: Vec<bool> = (0..2)
        .map(|_| {
            job.prepare_compress(Flags::ZLIB_MODE, &pages()[0]);
            assert_eq!(job.run(), Status::OK);
            inflate_zlib(job.output()).is_ok()
        })
        .collect();
    assert_eq!(right, [true, false]);
}

#[test]
fn the_device_uses_the_codes_it_is_given() {
    let Some(bench) = Bench::healthy("the_device_uses_the_codes_it_is_given") else {
        return;
    };
    let mut job = bench.job();
    let text = &pages()[0];
    let mut packed = |mode| {
        job.prepare_compress(mode, text);
        assert_eq!(job.run(), Status::OK);
        job.output().to_vec()
    };
    let fixed = packed(Flags::NONE);
    let dynamic = packed(Flags::DYNAMIC_HUFFMAN);
    assert_eq!(fixed[0] & 7, 0b011, "final block, fixed codes");
    assert_eq!(dynamic[0] & 7, 0b101, "final block, dynamic codes");
    assert!(
        dynamic.len() < fixed.len(),
        "{} {}",
        dynamic.len(),
        fixed.len()
    );
}

/// Joins pieces into one stream like zlib's flush, which is right only if the device reports the
/// true number of bits in a piece's last byte.
#[test]
fn the_last_bits_are_told_right() {
    let Some(bench) = Bench::healthy("the_last_bits_are_told_right") else {
        return;
    };
    let mut job = bench.job();
    let mut stream = Vec::new();
    let mut offsets = [false; 8];
    // The lengths differ, so that the pieces end at every bit.
    let pieces: Vec<Vec<u8>> = (0..40)
        .map(|cut| pages()[cut % 5][cut..].to_vec())
        .collect();
    for (index, piece) in pieces.iter().enumerate() {
        let mode = [Flags::NONE, Flags::DYNAMIC_HUFFMAN][index % 2];
        job.prepare_compress(mode, piece);
        assert_eq!(job.run(), Status::OK);
        let last_bits = job.fields().last_bit_offset as usize;
        offsets[last_bits] = true;
        let mut packed = job.output().to_vec();
        packed[0] &= !1;
        stream.extend(packed);
        // A stored block's three header bits use the free bits of the last byte, if there are
        // three.
        let free = (8 - last_bits) % 8;
        stream.extend(&[0, 0, 0, 0xff, 0xff][usize::from(free >= 3)..]);
    }
    stream.extend([3, 0]);
    let mut joined = Vec::new();
    DeflateDecoder::new(&*stream)
        .read_to_end(&mut joined)
        .expect("one valid stream");
    assert_eq!(joined, pieces.concat());
    assert!(
        offsets.iter().filter(|seen| **seen).count() > 4,
        "{offsets:?}"
    );
}

#[test]
fn canned_pages_survive_on_the_device() {
    let Some(bench) = Bench::healthy("canned_pages_survive_on_the_device") else {
        return;
    };
    for path in [Path::HARDWARE, Path::AUTO] {
        let table = Table::of(bench.library, path, &pages()[0]).expect("a table");
        let mut job = bench.job();
        for page in pages() {
            job.prepare_compress(Flags::CANNED_MODE, &page)
                .huffman_table = table.raw;
            assert_eq!(job.run(), Status::OK);
            let packed = job.output().to_vec();
            job.prepare(Operation::DECOMPRESS, Flags::CANNED_MODE, &packed, PAGE)
                .huffman_table = table.raw;
            assert_eq!(job.run(), Status::OK);
            assert_eq!(job.output(), page);
        }
    }
}

#[test]
fn device_and_software_read_each_others_canned_pages() {
    let Some(bench) = Bench::healthy("device_and_software_read_each_others_canned_pages") else {
        return;
    };
    let table = Table::of(bench.library, Path::AUTO, &pages()[0]).expect("a table");
    let software = HardwareJob::on(bench.library, Path::SOFTWARE).expect("always there");
    let mut jobs = [bench.job(), software];
    for writer in [0, 1] {
        for page in pages() {
            jobs[writer]
                .prepare_compress(Flags::CANNED_MODE, &page)
                .huffman_table = table.raw;
            assert_eq!(jobs[writer].run(), Status::OK);
            let packed = jobs[writer].output().to_vec();
            let reader = &mut jobs[1 - writer];
            reader
                .prepare(Operation::DECOMPRESS, Flags::CANNED_MODE, &packed, PAGE)
                .huffman_table = table.raw;
            assert_eq!(reader.run(), Status::OK);
            assert_eq!(reader.output(), page);
        }
    }
}

/// libqpl makes a canned job's AECS from the job's state and does not remove the fixed block's
/// header: a job for canned mode must only be used for canned mode.
#[test]
fn a_job_that_wrote_a_header_spoils_canned_pages() {
    let Some(bench) = Bench::healthy("a_job_that_wrote_a_header_spoils_canned_pages") else {
        return;
    };
    let table = Table::of(bench.library, Path::AUTO, &pages()[0]).expect("a table");
    let page = &pages()[0];
    let mut job = bench.job();
    job.prepare_compress(Flags::CANNED_MODE, page).huffman_table = table.raw;
    assert_eq!(job.run(), Status::OK);
    let right = job.output().to_vec();
    job.prepare_compress(Flags::NONE, page);
    assert_eq!(job.run(), Status::OK);
    job.prepare_compress(Flags::CANNED_MODE, page).huffman_table = table.raw;
    assert_eq!(job.run(), Status::OK);
    assert_ne!(job.output(), right);
}

#[test]
fn a_table_without_the_devices_state_is_refused() {
    let Some(bench) = Bench::healthy("a_table_without_the_devices_state_is_refused") else {
        return;
    };
    let table = Table::of(bench.library, Path::SOFTWARE, &pages()[0]).expect("a table");
    let mut job = bench.job();
    job.prepare_compress(Flags::CANNED_MODE, &pages()[0])
        .huffman_table = table.raw;
    assert_eq!(job.run(), Status::OK);
    let packed = job.output().to_vec();
    job.prepare(Operation::DECOMPRESS, Flags::CANNED_MODE, &packed, PAGE)
        .huffman_table = table.raw;
    assert_eq!(job.run(), Status::INTL_AECS);
}

#[test]
fn verification_goes_to_the_device() {
    let Some(bench) = Bench::healthy("verification_goes_to_the_device") else {
        return;
    };
    let mut job = bench.job();
    for page in pages() {
        job.prepare(Operation::COMPRESS, Flags::NONE, &page, PACKED_ROOM);
        assert_eq!(job.run(), Status::OK);
    }
    let counters = bench.device.counters();
    assert_eq!(counters.compressions, counters.decompressions);
}

#[test]
fn a_queue_full_of_jobs_completes() {
    let Some(bench) = Bench::healthy("a_queue_full_of_jobs_completes") else {
        return;
    };
    let pages = pages();
    let mut jobs: Vec<HardwareJob> = (0..100).map(|_| bench.job()).collect();
    for (index, job) in jobs.iter_mut().enumerate() {
        job.prepare_compress(Flags::NONE, &pages[index % pages.len()]);
        assert_eq!(job.submit(), Status::OK);
    }
    for (index, job) in jobs.iter_mut().enumerate() {
        assert_eq!(job.outcome(PATIENCE), Status::OK);
        assert_eq!(inflate(job.output()), pages[index % pages.len()]);
    }
    assert_eq!(bench.device.counters().compressions, 100);
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(bench) = Bench::healthy("what_does_not_fit_is_refused") else {
        return;
    };
    let random = pages().pop().expect("the last page is random");
    let mut job = bench.job();
    job.prepare(Operation::COMPRESS, Flags::OMIT_VERIFY, &random, PAGE - 1);
    assert_eq!(job.run(), Status::MORE_OUTPUT_NEEDED);
    // With enough room, the library falls back to a stored block.
    job.prepare(Operation::COMPRESS, Flags::OMIT_VERIFY, &random, PAGE + 5);
    assert_eq!(job.run(), Status::OK);
    assert_eq!(job.output().len(), PAGE + 5);
    assert_eq!(job.fields().last_bit_offset, 0);
    let stored = job.output().to_vec();
    assert_eq!(
        bench.decompress(Flags::NONE, &stored),
        (Status::OK, random.clone())
    );

    job.prepare(Operation::DECOMPRESS, Flags::NONE, &stored, PAGE - 1);
    assert_eq!(job.run(), Status::MORE_OUTPUT_NEEDED);
    assert_eq!(job.output(), &random[..PAGE - 1]);
}

#[test]
fn the_window_has_4096_bytes() {
    let Some(bench) = Bench::healthy("the_window_has_4096_bytes") else {
        return;
    };
    // A head that repeats after a filling of zeros.
    let far_match = |distance: usize| {
        let mut input: Vec<u8> = (1..=64).collect();
        input.resize(distance, 0);
        input.extend(1..=64);
        let mut packed = Vec::new();
        DeflateEncoder::new(&*input, Compression::best())
            .read_to_end(&mut packed)
            .expect("no file is involved");
        (input, packed)
    };
    for (distance, status) in [(4096, Status::OK), (4097, Status::BAD_DIST)] {
        let (input, packed) = far_match(distance);
        let mut job = bench.job();
        job.prepare(Operation::DECOMPRESS, Flags::NONE, &packed, input.len());
        assert_eq!(job.run(), status, "{distance}");
    }
}

#[test]
fn what_breaks_the_rules_is_refused_by_name() {
    let Some(bench) = Bench::healthy("what_breaks_the_rules_is_refused_by_name") else {
        return;
    };
    let mut job = bench.job();
    job.prepare_compress(Flags::DYNAMIC_HUFFMAN, &pages()[0]);
    assert_eq!(job.run(), Status::OK);
    let whole = job.output().to_vec();
    let cases: &[(&[u8], Status)] = &[
        (&[0b111], Status::INVALID_BLOCK_TYPE),
        (&[0b001, 4, 0, 4, 0, 1, 2, 3, 4], Status::INVALID_STORED_LEN),
        // 30 additional literal/length codes, which makes 287.
        (&[0b1111_0101, 0, 0, 0], Status::TOO_MANY_LL_CODES),
        // 31 distance codes.
        (&[0b0000_0101, 0b0001_1110, 0, 0], Status::TOO_MANY_D_CODES),
        // The fixed codes for a match of 3 bytes at distance 1 at the start of the output.
        (&[0b0000_0011, 0b0000_0010, 0, 0], Status::REF_BEFORE_START),
        (&whole[..whole.len() - 1], Status::BAD_EOF),
        (&whole[..20], Status::BAD_EOF),
        // A block that is not the final one.
        (&[0b010, 0], Status::BAD_EOF),
    ];
    for (packed, status) in cases {
        assert_eq!(
            bench.decompress(Flags::NONE, packed).0,
            *status,
            "{packed:x?}"
        );
    }
    assert_eq!(bench.device.counters().failures, cases.len() as u64);
}

#[test]
fn a_flushed_stream_is_read_when_no_final_block_is_demanded() {
    let Some(bench) = Bench::healthy("a_flushed_stream_is_read_when_no_final_block_is_demanded")
    else {
        return;
    };
    let page = &pages()[0];
    let mut compress = flate2::Compress::new(Compression::fast(), false);
    let mut packed = Vec::with_capacity(PACKED_ROOM);
    compress
        .compress_vec(page, &mut packed, flate2::FlushCompress::Sync)
        .expect("room enough");
    for (end, status) in [
        (
            DecompressEnd::STOP_AND_CHECK_FOR_BFINAL_EOB,
            Status::BAD_EOF,
        ),
        (DecompressEnd::DONT_STOP_OR_CHECK, Status::OK),
        (DecompressEnd::CHECK_FOR_ANY_EOB, Status::OK),
    ] {
        let mut job = bench.job();
        job.prepare(Operation::DECOMPRESS, Flags::NONE, &packed, PAGE)
            .decomp_end_processing = end;
        assert_eq!(job.run(), status, "{end:?}");
        if status == Status::OK {
            assert_eq!(job.output(), page);
        }
    }
}

/// A stream over several jobs needs state that the engine does not keep: it reports so.
#[test]
fn a_chain_of_jobs_is_refused() {
    let Some(bench) = Bench::healthy("a_chain_of_jobs_is_refused") else {
        return;
    };
    let mut job = bench.job();
    job.prepare_compress(Flags::NONE, &pages()[0]).flags = Flags::FIRST | Flags::OMIT_VERIFY;
    assert_eq!(job.run(), Status::INTL_INVALID_OP_FLAG);
}

fn inflate_zlib(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    ZlibDecoder::new(packed).read_to_end(&mut unpacked)?;
    Ok(unpacked)
}
