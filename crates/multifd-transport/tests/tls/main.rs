//! TLS between two ends, with certificates made here.
