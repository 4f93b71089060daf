//! Names and validity of a certificate, for messages and lists of names.
//!
//! rustls checks certificates. It does not tell the subject and the times, so a reader of DER
//! (X.690) for the few fields of RFC 5280 that are wanted is here. It reads certificates of
//! strangers: a field that it cannot read is one that is not there.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use multifd_transport::printable;

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTC_TIME: u8 = 0x17;
const GENERAL_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// `id-at-commonName`, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// `id-ce-subjectAltName`, 2.5.29.17.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

/// GeneralName's dNSName and iPAddress.
const DNS: u8 = 0x82;
const IP: u8 = 0x87;

/// The most names that are kept of one certificate.
const NAMES: usize = 64;

/// The names in a certificate.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Names {
    pub(super) common: Option<String>,
    pub(super) dns: Vec<String>,
    pub(super) ip: Vec<String>,
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.common {
            Some(name) => write!(f, "CN {}", printable(name))?,
            None => f.write_str("no CN")?,
        }
        // A screen has no room for more.
        for name in self.dns.iter().chain(&self.ip).take(8) {
            write!(f, ", {}", printable(name))?;
        }
        Ok(())
    }
}

/// The fields that this module reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Certificate {
    pub(super) names: Names,
    /// In seconds since 1970.
    pub(super) not_before: Option<u64>,
    pub(super) not_after: Option<u64>,
}

/// Reads a certificate; `None` where it is none.
pub(super) fn read(der: &[u8]) -> Option<Certificate> {
    let mut outer = Reader(Reader(der).expect(SEQUENCE)?);
    let mut fields = Reader(outer.expect(SEQUENCE)?);
    fields.skip_if(VERSION);
    fields.expect(INTEGER)?;
    fields.expect(SEQUENCE)?;
    fields.expect(SEQUENCE)?;
    let mut validity = Reader(fields.expect(SEQUENCE)?);
    let subject = fields.expect(SEQUENCE)?;
    fields.expect(SEQUENCE)?;
    let mut certificate = Certificate {
        not_before: validity.next().and_then(time),
        not_after: validity.next().and_then(time),
        ..Certificate::default()
    };
    certificate.names.common = common_name(subject);
    while let Some((tag, bytes)) = fields.next() {
        if tag == EXTENSIONS {
            alternative_names(bytes, &mut certificate.names);
        }
    }
    Some(certificate)
}

/// The last common name of a subject: the most specific one.
fn common_name(subject: &[u8]) -> Option<String> {
    let mut found = None;
    let mut sets = Reader(subject);
    while let Some((SET, set)) = sets.next() {
        let mut set = Reader(set);
        while let Some((SEQUENCE, pair)) = set.next() {
            let mut pair = Reader(pair);
            if pair.expect(OID) == Some(COMMON_NAME)
                && let Some((_, value)) = pair.next()
            {
                found = Some(String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    found
}

fn alternative_names(extensions: &[u8], names: &mut Names) -> Option<()> {
    let mut list = Reader(Reader(extensions).expect(SEQUENCE)?);
    while let Some((SEQUENCE, extension)) = list.next() {
        let mut extension = Reader(extension);
        if extension.expect(OID) != Some(ALTERNATIVE_NAMES) {
            continue;
        }
        // Whether it is critical may stand between.
        let value = loop {
            match extension.next()? {
                (OCTETS, value) => break value,
                _ => continue,
            }
        };
        let mut all = Reader(Reader(value).expect(SEQUENCE)?);
        while let Some((tag, name)) = all.next() {
            if names.dns.len().saturating_add(names.ip.len()) >= NAMES {
                break;
            }
            match tag {
                DNS => names.dns.push(String::from_utf8_lossy(name).into_owned()),
                IP => names.ip.extend(ip(name)),
                _ => {}
            }
        }
    }
    Some(())
}

fn ip(bytes: &[u8]) -> Option<String> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(bytes).to_string());
    }
    let bytes = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(bytes).to_string())
}

/// Items of DER, one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut len = usize::from(first);
        if first >= 0x80 {
            let digits;
            (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            // No certificate is longer than two bytes can say, and then some.
            if digits.is_empty() || digits.len() > 3 {
                return None;
            }
            len = digits
                .iter()
                .fold(0, |len, &digit| len << 8 | usize::from(digit));
        }
        let bytes;
        (bytes, self.0) = rest.split_at_checked(len)?;
        Some((tag, bytes))
    }

    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(tag, _)| *tag == wanted)
            .map(|(_, bytes)| bytes)
    }

    fn skip_if(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            self.next();
        }
    }
}

/// Seconds since 1970 of UTCTime or GeneralizedTime, in the forms that RFC 5280 allows. A time
/// before 1970 is 0.
fn time((tag, text): (u8, &[u8])) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    let two = |at: usize| -> Option<i64> {
        let pair = digits.get(at..at.checked_add(2)?)?;
        std::str::from_utf8(pair)
            .ok()?
            .parse::<u8>()
            .ok()
            .map(i64::from)
    };
    let (year, at) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = two(0)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, 2)
        }
        (GENERAL_TIME, 14) => (two(0)? * 100 + two(2)?, 4),
        _ => return None,
    };
    let days = days(year, two(at)?, two(at + 2)?);
    let seconds = days * 86_400 + two(at + 4)? * 3600 + two(at + 6)? * 60 + two(at + 8)?;
    Some(u64::try_from(seconds).unwrap_or(0))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar. A year starts in March here, so a leap
/// day is its last one.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// A time for people, in UTC and to the minute.
pub(super) fn date(seconds: u64) -> String {
    // A time beyond year 9999 is no time.
    let seconds = i64::try_from(seconds)
        .unwrap_or(i64::MAX)
        .min(253_402_300_799);
    let (day, rest) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970 + day / 366;
    while days(year + 1, 1, 1) <= day {
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days(year, month + 1, 1) <= day {
        month += 1;
    }
    let day = day - days(year, month, 1) + 1;
    let (hour, minute) = (rest / 3600, rest % 3600 / 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (text, seconds, shown) in [
            ("700101000000Z", 0, "1970-01-01 00:00 UTC"),
            ("000229235959Z", 951_868_799, "2000-02-29 23:59 UTC"),
            ("260731120000Z", 1_785_499_200, "2026-07-31 12:00 UTC"),
            ("491231235959Z", 2_524_607_999, "2049-12-31 23:59 UTC"),
        ] {
            assert_eq!(time((UTC_TIME, text.as_bytes())), Some(seconds), "{text}");
            assert_eq!(date(seconds), shown);
        }
        assert_eq!(
            time((GENERAL_TIME, b"20500101000000Z")),
            Some(2_524_608_000)
        );
        assert_eq!(
            time((GENERAL_TIME, b"99991231235959Z")),
            Some(253_402_300_799)
        );
        assert_eq!(date(u64::MAX), "9999-12-31 23:59 UTC");
        assert_eq!(time((UTC_TIME, b"500101000000Z")), Some(0), "1950");
        for wrong in ["2607311200Z", "260731120000", "26073112000aZ", "Z", ""] {
            assert_eq!(time((UTC_TIME, wrong.as_bytes())), None, "{wrong}");
        }
    }

    #[test]
    fn names_and_times_are_read() {
        let mut params = rcgen::CertificateParams::new(vec![
            "a.example".to_owned(),
            "*.b.example".to_owned(),
            "192.0.2.7".to_owned(),
            "2001:db8::1".to_owned(),
        ])
        .unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "Größe");
        params.not_before = rcgen::date_time_ymd(2026, 7, 31);
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        let found = read(made.der()).unwrap();
        assert_eq!(found.names.common.as_deref(), Some("Größe"));
        assert_eq!(found.names.dns, ["a.example", "*.b.example"]);
        assert_eq!(found.names.ip, ["192.0.2.7", "2001:db8::1"]);
        assert_eq!(found.not_before, Some(1_785_456_000));
        assert!(found.not_after.is_some());
    }

    /// Each byte of a certificate changed, and each of its lengths: no answer is a panic.
    #[test]
    fn changed_certificates_do_no_harm() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let made = params.self_signed(&key).unwrap().der().to_vec();
        for at in 0..made.len() {
            read(&made[..at]);
            for value in [0x00, 0x30, 0x7f, 0x80, 0x82, 0x84, 0xff] {
                let mut changed = made.clone();
                changed[at] = value;
                if let Some(read) = read(&changed) {
                    read.names.to_string();
                    date(read.not_after.unwrap_or(0));
                }
            }
        }
    }
}
