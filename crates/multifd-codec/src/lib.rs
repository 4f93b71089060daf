//! QEMU multifd migration: packets of pages to payloads and back.

pub mod deflate;
