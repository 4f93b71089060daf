//! QEMU multifd migration: packets of pages to payloads and back.
