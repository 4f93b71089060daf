//! Strangers in the middle of a migration.

use std::thread;

use super::super::support::peers::{Source, a_while, dial, write};
use super::super::{TAKERS, Taking, both};

/// They come after main and its first channel, after all channels, and when all is written; and
/// whether they stay or go.
#[test]
fn whenever_strangers_come_they_take_nothing() {
    let words: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        &[0xff; 4096],
    ];
    thread::scope(|scope| {
        for taker in TAKERS {
            for migration in both() {
                scope.spawn(move || {
                    let taking = Taking::start(taker);
                    let address = taking.address.clone();
                    let mut kept = Vec::new();
                    let mut strangers = || {
                        for words in words {
                            // One that stays, and one that goes at once.
                            for stays in [true, false] {
                                let stranger = dial(&address);
                                write(&stranger, words);
                                kept.extend(stays.then_some(stranger));
                            }
                        }
                    };
                    let mut source = Source::dial(&taking.address, 1);
                    write(&source.channels[0], &migration.channels[0][..64]);
                    let (start, rest) = migration.main.split_at(30);
                    write(&source.main, start);
                    strangers();
                    a_while();
                    let last = dial(&taking.address);
                    write(&last, &migration.channels[1]);
                    source.channels.push(last);
                    write(&source.main, rest);
                    strangers();
                    a_while();
                    write(&source.channels[0], &migration.channels[0][64..]);
                    strangers();
                    taking.takes(&migration, &source);
                    drop(kept);
                });
            }
        }
    });
}
