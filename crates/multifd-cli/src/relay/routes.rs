//! Which address leads where.

use std::fmt;
use std::fs;

use multifd_transport::Address;

use crate::args::RelayArgs;

/// An address that is listened on, and the one that its migrations go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub listen: Address,
    pub connect: Address,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.listen)
    }
}

impl Route {
    /// Reads LISTEN=CONNECT.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (listen, connect) = text
            .split_once("=unix:")
            .map(|(listen, path)| (listen, format!("unix:{path}")))
            .or_else(|| {
                text.split_once("=tcp:")
                    .map(|(listen, host)| (listen, format!("tcp:{host}")))
            })
            .ok_or_else(|| {
                format!("`{text}` is no route: write LISTEN=CONNECT, as in tcp:0.0.0.0:4444=unix:/run/vm.sock")
            })?;
        let address = |text: &str| text.parse::<Address>().map_err(|error| error.to_string());
        Ok(Self {
            listen: address(listen)?,
            connect: address(&connect)?,
        })
    }
}

/// All routes that were asked for.
pub fn of(args: &RelayArgs) -> Result<Vec<Route>, String> {
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
        let text = fs::read_to_string(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                let route = Route::parse(line)
                    .map_err(|error| format!("{}, line {}: {error}", file.display(), index + 1))?;
                routes.push(route);
            }
        }
    }
    if routes.is_empty() {
        return Err("say where to listen and where to connect: --listen ADDR --connect ADDR".to_owned());
    }
    for (index, route) in routes.iter().enumerate() {
        if let Some(other) = routes.iter().find(|other| other.listen == route.connect) {
            return Err(format!("{} would be connected to this relay itself", other.listen));
        }
        if routes.iter().skip(index + 1).any(|other| other.listen == route.listen && !is_any_port(&route.listen)) {
            return Err(format!("{} is listened on twice", route.listen));
        }
    }
    Ok(routes)
}

/// Port 0 is another one every time.
fn is_any_port(address: &Address) -> bool {
    address.unix_path().is_none() && address.to_string().ends_with(":0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_pairs_of_addresses() {
        let route = Route::parse("tcp:0.0.0.0:4444=unix:/run/a=b.sock").unwrap();
        assert_eq!(route.listen.to_string(), "tcp:0.0.0.0:4444");
        assert_eq!(route.connect.to_string(), "unix:/run/a=b.sock");
        let route = Route::parse("unix:/run/a=b=tcp:dst:1").unwrap();
        assert_eq!(route.listen.to_string(), "unix:/run/a=b");
        for text in ["", "unix:/a", "unix:/a=/b", "=unix:/a"] {
            assert!(Route::parse(text).is_err(), "{text}");
        }
    }
}
