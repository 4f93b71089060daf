//! One file per verb.

pub mod check;
pub mod detect;
pub mod setup;
pub mod test;
