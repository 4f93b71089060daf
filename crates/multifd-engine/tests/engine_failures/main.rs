//! Whatever goes wrong, there is one guest, the reason has a name, and nothing is left behind.
//!
//! All of it is one test: it counts threads and descriptors of the process.

mod bases;
mod cut;
mod logs;
mod peers;
mod scenarios;

#[test]
fn one_guest_a_reason_and_nothing_left_behind() {
    scenarios::run_all();
}
