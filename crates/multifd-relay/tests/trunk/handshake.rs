//! Prefaces, answers and the choice between them.

use multifd_relay::trunk::{
    Abilities, Accepted, Answer, AnswerReceiver, Choice, Compression, Connection, Digest,
    HandshakeFault, Offers, Preface, PrefaceReceiver, Refusal, RefusalCode, StrandTerms, Versions,
    choose,
};
use multifd_wire::{Hello, Method};
use testkit::wire::{CUTS, events, vector};

use super::{abilities, extension, preface};

fn hello() -> Hello {
    Hello {
        uuid: *b"0123456789abcdef",
        channel: 7,
        reserved: std::array::from_fn(|at| at as u8),
    }
}

fn prefaces() -> [Preface; 6] {
    let recovery = Connection::Main {
        has_channels: false,
        may_be_postcopy: true,
        is_recovery: true,
    };
    let with = |connection| Preface {
        connection,
        ..preface()
    };
    let mut channel = with(Connection::Channel(hello()));
    channel.extensions = vec![extension(5, b""), extension(0x8001, b"needed")];
    let (group, number) = (1, 2);
    let mut strands = preface();
    strands.extensions = vec![StrandTerms { count: 4, group }.extension()];
    [
        with(recovery),
        channel,
        with(Connection::Preempt),
        with(Connection::Strand { group, number }),
        strands,
        preface(),
    ]
}

fn chosen_answer() -> Answer {
    let chosen = choose(&preface(), &abilities()).unwrap();
    Answer::Accepted(chosen.into())
}

fn refused() -> Answer {
    Answer::Refused(Refusal::new(RefusalCode::NO_SUCH_NAME, "no guest vm-1"))
}

#[test]
fn prefaces_and_answers_come_apart_as_they_were_made_in_every_cut() {
    for preface in prefaces() {
        let bytes = [&preface.encode().unwrap(), b"frames".as_slice()].concat();
        for cut in CUTS {
            let mut receiver = PrefaceReceiver::default();
            let (prefaces, outcome) = events(&bytes, cut, |piece| receiver.push(piece));
            assert_eq!((prefaces, outcome), (vec![preface.clone()], Ok(())));
        }
    }
    for answer in [chosen_answer(), refused()] {
        let bytes = answer.encode().unwrap();
        for cut in CUTS {
            let mut receiver = AnswerReceiver::default();
            let (answers, outcome) = events(&bytes, cut, |piece| receiver.push(piece));
            assert_eq!((answers, outcome), (vec![answer.clone()], Ok(())));
        }
    }
}

#[test]
fn what_follows_stays_in_the_input() {
    let bytes = [preface().encode().unwrap(), b"frames".to_vec()].concat();
    let mut input = bytes.as_slice();
    assert!(
        PrefaceReceiver::default()
            .push(&mut input)
            .unwrap()
            .is_some()
    );
    assert_eq!(input, b"frames");
    let mut receiver = AnswerReceiver::default();
    let bytes = refused().encode().unwrap();
    let mut at = 0;
    loop {
        let wanted = receiver.wanted();
        assert_eq!(
            receiver.truncated(),
            HandshakeFault::Truncated { missing: wanted }
        );
        let answer = receiver.push(&mut &bytes[at..at + wanted]).unwrap();
        at += wanted;
        if answer.is_some() {
            break;
        }
    }
    assert_eq!((at, receiver.wanted()), (bytes.len(), 0));
}

/// These bytes are the format. A change of them needs another version.
#[test]
fn the_bytes_stay_as_they_are() {
    let [_, channel, preempt, strand, strands, main] = prefaces();
    for (preface, name) in [
        (main, "main"),
        (channel, "channel"),
        (preempt, "preempt"),
        (strand, "strand"),
        (strands, "strands"),
    ] {
        let bytes = vector(&format!("trunk-preface-{name}.txt"));
        assert_eq!(preface.encode().unwrap(), bytes, "{name}");
    }
    for (answer, name) in [(chosen_answer(), "accepted"), (refused(), "refused")] {
        let bytes = vector(&format!("trunk-{name}.txt"));
        assert_eq!(answer.encode().unwrap(), bytes, "{name}");
    }
}

#[test]
fn the_server_prefers() {
    let chosen = choose(&preface(), &abilities()).unwrap();
    assert_eq!(chosen.version, 1);
    assert_eq!(chosen.method, Method::Zstd);
    assert_eq!(chosen.digest, Digest::Xxh3);
    assert_eq!(chosen.compression, Compression::Zstd);

    let plain = Abilities {
        methods: vec![Method::Qpl, Method::None, Method::Zlib],
        digests: vec![Digest::None, Digest::Xxh3],
        compressions: vec![Compression::None],
        extensions: Vec::new(),
    };
    let chosen = choose(&preface(), &plain).unwrap();
    assert_eq!(chosen.method, Method::None);
    assert_eq!(chosen.digest, Digest::None);
    assert_eq!(chosen.compression, Compression::None);
    let accepted = Accepted::from(chosen);
    assert_eq!(accepted.chosen(&preface(), &[]), Ok(chosen));
}

#[test]
fn codes_that_nobody_knows_yet_are_passed_over() {
    let mut preface = preface();
    for list in [
        &mut preface.offers.methods,
        &mut preface.offers.digests,
        &mut preface.offers.compressions,
    ] {
        *list = vec![200, 0, 201];
    }
    let chosen = choose(&preface, &abilities()).unwrap();
    assert_eq!((chosen.method, chosen.digest), (Method::None, Digest::None));
}

#[test]
fn methods_without_a_code_are_not_offered() {
    let mut abilities = abilities();
    abilities.methods = Method::ALL.to_vec();
    assert_eq!(Offers::of(&abilities).methods, [0, 1, 2, 3, 4]);
}

#[test]
fn what_is_not_common_is_refused() {
    let refuses = |change: fn(&mut Preface), code, words: &str| {
        let mut preface = preface();
        change(&mut preface);
        let refusal = choose(&preface, &abilities()).unwrap_err();
        assert_eq!(refusal.code, code);
        assert!(refusal.to_string().contains(words), "{refusal}");
    };
    let nothing = RefusalCode::NOTHING_COMMON;
    refuses(
        |preface| preface.offers.methods = vec![3],
        nothing,
        "method",
    );
    refuses(|preface| preface.offers.methods.clear(), nothing, "method");
    refuses(
        |preface| preface.offers.digests = vec![9],
        nothing,
        "digest",
    );
    refuses(
        |preface| preface.offers.compressions = vec![9],
        nothing,
        "compression",
    );
    let versions = |preface: &mut Preface| {
        preface.versions = Versions {
            oldest: 2,
            newest: 3,
        };
    };
    refuses(versions, RefusalCode::VERSION, "versions 2 to 3");
    let needed = |preface: &mut Preface| preface.extensions = vec![extension(0x8007, b"")];
    refuses(needed, RefusalCode::EXTENSION, "0x8007");
}

#[test]
fn an_extension_that_is_not_needed_is_ignored() {
    let mut preface = preface();
    preface.extensions = vec![extension(0x7fff, b"x"), extension(0x8007, b"y")];
    let mut abilities = abilities();
    abilities.extensions = vec![0x8007];
    assert!(choose(&preface, &abilities).is_ok());

    let mut accepted = Accepted::from(choose(&super::preface(), &abilities).unwrap());
    accepted.extensions = preface.extensions.clone();
    assert!(accepted.chosen(&preface, &[0x8007]).is_ok());
    assert_eq!(
        accepted.chosen(&preface, &[]),
        Err(HandshakeFault::ExtensionNeeded { id: 0x8007 })
    );
}

#[test]
fn an_answer_chooses_what_was_offered() {
    let good = Accepted::from(choose(&preface(), &abilities()).unwrap());
    let mut preface = preface();
    preface.offers.methods = vec![0, 200];
    for (choice, found) in [
        (Choice::Version, 2),
        (Choice::Method, 1),
        (Choice::Method, 200),
        (Choice::Digest, 7),
        (Choice::Compression, 7),
    ] {
        let mut accepted = good.clone();
        accepted.method = 0;
        match choice {
            Choice::Version => accepted.version = found,
            Choice::Method => accepted.method = found as u8,
            Choice::Digest => accepted.digest = found as u8,
            _ => accepted.compression = found as u8,
        }
        assert_eq!(
            accepted.chosen(&preface, &[]),
            Err(HandshakeFault::NotOffered { choice, found })
        );
    }
}

#[test]
fn a_refusal_is_shown_without_commands() {
    let refusal = Refusal::new(RefusalCode::BUSY, "later\x1b[2J\n");
    let shown = refusal.to_string();
    assert!(shown.starts_with("busy: later"));
    assert!(!shown.chars().any(char::is_control), "{shown}");
    assert_eq!(
        Refusal::new(RefusalCode(999), "").to_string(),
        "refusal 999"
    );
    let long = Refusal::new(RefusalCode::OTHER, &"é".repeat(1000));
    let bytes = Answer::Refused(long.clone()).encode().unwrap();
    let answer = AnswerReceiver::default().push(&mut bytes.as_slice());
    assert_eq!(answer, Ok(Some(Answer::Refused(long))));
}

#[test]
fn what_a_server_would_refuse_is_not_written() {
    let mut too_many = preface();
    too_many.offers.digests = vec![0; 65];
    let fault = HandshakeFault::Codes {
        found: 65,
        allowed: 64,
    };
    assert_eq!(too_many.encode(), Err(fault));
    let mut too_long = preface();
    too_long.extensions = vec![extension(1, &[0; 4096])];
    assert!(matches!(
        too_long.encode(),
        Err(HandshakeFault::Length { allowed: 4096, .. })
    ));
    let mut twice = preface();
    twice.extensions = vec![extension(1, b""), extension(2, b""), extension(1, b"")];
    assert_eq!(
        twice.encode(),
        Err(HandshakeFault::ExtensionTwice { id: 1 })
    );
}
