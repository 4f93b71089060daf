//! Routes: listening addresses and their destinations.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use clap::builder::{OsStringValueParser, TypedValueParser};
use multifd_relay::leg::LegAddress;

use crate::args::RelayArgs;
use crate::say;

/// An address that is listened on, and the one that its migrations go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub listen: LegAddress,
    pub connect: LegAddress,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.listen)
    }
}

impl Route {
    /// Reads LISTEN=CONNECT from the command line, where a path need not be text.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Route> {
        OsStringValueParser::new().try_map(|text| Route::parse(&text))
    }

    /// Reads LISTEN=CONNECT. The first `=` behind which an address stands parts them.
    ///
    /// # Errors
    ///
    /// What to write instead.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let is_split = |at: &usize| {
            let rest = bytes.get(*at..).unwrap_or_default();
            let words: [&[u8]; 5] = [b"=unix:", b"=tcp:", b"=tls:", b"=trunk:", b"=trunk+"];
            words.iter().any(|word| rest.starts_with(word))
        };
        let at = (0..bytes.len()).find(is_split).ok_or_else(|| {
            let text = text.to_string_lossy();
            format!("`{text}` is no route: write LISTEN=CONNECT, as in tcp:0.0.0.0:4444=unix:/run/vm.sock")
        })?;
        let (listen, connect) = bytes.split_at(at);
        let address = |bytes: &[u8]| {
            LegAddress::from_os_str(OsStr::from_bytes(bytes)).map_err(|error| error.to_string())
        };
        Ok(Self {
            listen: address(listen)?,
            connect: address(connect.get(1..).unwrap_or_default())?,
        })
    }
}

/// All routes that were asked for.
pub(super) fn of(args: &RelayArgs) -> Result<Vec<Route>, String> {
    let mut routes = args.route.clone();
    match (&args.listen, &args.connect) {
        (Some(listen), Some(connect)) => {
            let (listen, connect) = (listen.clone(), connect.clone());
            routes.insert(0, Route { listen, connect });
        }
        (None, None) => {}
        _ => return Err("--listen and --connect go together".to_owned()),
    }
    if let Some(file) = &args.routes {
        let name = say::printable_path(file);
        let bytes = fs::read(file).map_err(|error| format!("cannot read {name}: {error}"))?;
        for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if !line.is_empty() && !line.starts_with(b"#") {
                let route = Route::parse(OsStr::from_bytes(line))
                    .map_err(|error| format!("{name}, line {}: {error}", index + 1))?;
                routes.push(route);
            }
        }
    }
    if routes.is_empty() {
        return Err(
            "say where to listen and where to connect: --listen ADDR --connect ADDR".to_owned(),
        );
    }
    for (index, route) in routes.iter().enumerate() {
        if routes.iter().skip(index + 1).any(|other| {
            other.listen.address == route.listen.address && !is_any_port(&route.listen)
        }) {
            return Err(format!("{} is listened on twice", route.listen));
        }
    }
    Ok(routes)
}

/// Port 0 is another one every time.
fn is_any_port(leg: &LegAddress) -> bool {
    leg.address.unix_path().is_none() && leg.to_string().ends_with(":0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_pairs_of_addresses() {
        let parse = |text: &str| Route::parse(OsStr::new(text));
        let route = parse("tcp:0.0.0.0:4444=unix:/run/a=b.sock").unwrap();
        assert_eq!(route.listen.to_string(), "tcp:0.0.0.0:4444");
        assert_eq!(route.connect.to_string(), "unix:/run/a=b.sock");
        let route = parse("trunk+tcp::1=unix:/run/{name}.sock").unwrap();
        assert_eq!(route.listen.to_string(), "trunk+tcp::1");
        assert!(route.connect.needs_name());
        let route = parse("unix:/run/a=b=tcp:dst:1").unwrap();
        assert_eq!(route.listen.to_string(), "unix:/run/a=b");
        for text in ["", "unix:/a", "unix:/a=/b", "=unix:/a"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
