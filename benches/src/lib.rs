//! Criterion benches, one file per stage of the data flow.
