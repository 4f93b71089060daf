//! TLS between two ends, with certificates made here. Peers that break rules are made of rustls
//! itself.

mod carries;
mod ends;
mod files;
mod made;
mod refusals;
mod strangers;
