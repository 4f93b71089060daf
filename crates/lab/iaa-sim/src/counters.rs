//! Counters of the simulated machine.

use std::path::Path;

/// Declares the counters once, in their order in memory and in the file.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The number of events of each kind since the settings were made.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// The difference to `earlier`, counters of the same settings.
            #[must_use]
            pub fn since(self, earlier: Counters) -> Counters {
                Counters { $($name: self.$name.saturating_sub(earlier.$name),)* }
            }

            /// The format of the file.
            pub(crate) fn to_bytes(self) -> Vec<u8> {
                [$(self.$name),*].into_iter().flat_map(u64::to_le_bytes).collect()
            }

            /// Reads the counters from the file named in the settings.
            ///
            /// # Errors
            ///
            /// The errors of reading a file, and
            /// [`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof) for a file without counters.
            pub fn read(path: &Path) -> std::io::Result<Counters> {
                let bytes = std::fs::read(path)?;
                let words = bytes.chunks_exact(8).filter_map(|word| word.try_into().ok());
                let mut words = words.map(u64::from_le_bytes);
                let mut next = || words.next().ok_or(std::io::ErrorKind::UnexpectedEof);
                Ok(Counters { $($name: next()?,)* })
            }
        }
    };
}

counters! {
    /// Queues opened: libqpl tries each with a descriptor that does nothing.
    probes,
    /// Compressions.
    compressions,
    /// Compressions in statistics mode: the first pass of a dynamic one, or a gathering.
    statistics,
    /// Decompressions, including verifications and table loads.
    decompressions,
    /// Descriptors with another operation code.
    others,
    /// Completion records of success.
    successes,
    /// Completion records of failures caused by the work itself.
    failures,
    /// Page faults on the input, injected by the settings.
    read_faults,
    /// Page faults on the output, injected by the settings.
    write_faults,
    /// Completion records injected by the settings.
    records,
    /// Descriptors dropped by the settings.
    lost,
    /// Descriptors delayed by the settings.
    late,
}

#[cfg(test)]
mod tests {
    use super::Counters;

    #[test]
    fn a_file_gives_back_what_was_counted() {
        let counters = Counters {
            probes: 1,
            lost: u64::MAX,
            ..Counters::default()
        };
        let path = std::env::temp_dir().join(format!("iaa-sim-counters-{}", std::process::id()));
        std::fs::write(&path, counters.to_bytes()).unwrap();
        let read = Counters::read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), counters);
        let earlier = Counters {
            lost: 1,
            ..Counters::default()
        };
        assert_eq!(counters.since(earlier).lost, u64::MAX - 1);
    }
}
