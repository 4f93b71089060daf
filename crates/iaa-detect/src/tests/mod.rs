//! Detection on machines made of files.

mod access;
mod expect;
mod healthy;
mod hostile;
mod machine;
mod report;
mod setup;
mod system;
