//! Real QEMUs, a tiny guest and QMP, for this workspace's tests, demo and benches.
