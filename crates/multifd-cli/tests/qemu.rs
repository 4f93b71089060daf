//! The `multifd` command between real QEMUs, with a guest that checks its own memory.
//!
//! Most tests move one guest from process to process (`qemu_lab::Chain`): after every hop the
//! memory of both ends is compared byte by byte, the guest's own record of its memory is checked,
//! and the guest must go on. What a hop gives is what a plain migration gives, because a plain
//! migration of this guest leaves no page different (shown by the tests of `qemu-lab`).

mod support;

/// One file for each subject.
mod qemu {
    mod accelerated;
    mod device;
    mod failures;
    mod files;
    mod libqpl;
    mod lost;
    mod matrix;
    mod one_sided;
    mod operate;
    mod pages;
    mod relays;
    #[cfg(feature = "tls")]
    mod tls;
    mod trunk;
}
