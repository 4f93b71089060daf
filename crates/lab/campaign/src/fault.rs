//! The faults that a run may have, and how often each is chosen.

use std::fmt;

use crate::kind::{Between, Kind};

/// A fault of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Nothing is broken.
    None,
    /// Strangers dial the parts.
    Strangers,
    /// A connection comes late.
    Late,
    /// Connections come in another order.
    Reordered,
    /// A connection, or the source, stands still for a while.
    Stall,
    /// The network carries little at a time.
    SlowLink,
    /// A connection is reset.
    Reset,
    /// A connection is closed.
    Cut,
    /// One direction of a connection is closed.
    HalfClose,
    /// All connections are cut at once.
    AllCut,
    /// A bit changes on the way.
    Flip,
    /// The source cancels.
    Cancel,
    /// The source is killed.
    KillSource,
    /// The part next to the source is killed.
    KillNear,
    /// The relay next to the destination is killed.
    KillFar,
    /// The destination is killed.
    KillDestination,
    /// Another connection says the hello of a channel.
    DuplicateHello,
    /// A connection of an earlier attempt is still there.
    StaleHello,
    /// A part has few descriptors.
    NoDescriptors,
    /// A part can make few threads.
    NoThreads,
    /// The source has fewer channels than the destination expects.
    FewChannels,
    /// The source has more channels than the destination expects.
    ManyChannels,
    /// The destination refuses the guest.
    Refuses,
    /// The destination resets a connection.
    DestinationResets,
    /// The destination stands still for a while.
    DestinationPauses,
    /// The destination reads slowly.
    SlowReader,
    /// Bytes of a trunk are lost.
    LostBytes,
    /// Bytes of a trunk come twice.
    BytesComeTwice,
    /// A preface of a trunk comes twice.
    PrefaceComesTwice,
    /// The disk of a receiver is full.
    FullDisk,
    /// A second migration begins at the same time.
    Second,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 31] = [
        Self::None,
        Self::Strangers,
        Self::Late,
        Self::Reordered,
        Self::Stall,
        Self::SlowLink,
        Self::Reset,
        Self::Cut,
        Self::HalfClose,
        Self::AllCut,
        Self::Flip,
        Self::Cancel,
        Self::KillSource,
        Self::KillNear,
        Self::KillFar,
        Self::KillDestination,
        Self::DuplicateHello,
        Self::StaleHello,
        Self::NoDescriptors,
        Self::NoThreads,
        Self::FewChannels,
        Self::ManyChannels,
        Self::Refuses,
        Self::DestinationResets,
        Self::DestinationPauses,
        Self::SlowReader,
        Self::LostBytes,
        Self::BytesComeTwice,
        Self::PrefaceComesTwice,
        Self::FullDisk,
        Self::Second,
    ];

    /// The fault of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// The name, as summaries and `--fault` have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Strangers => "strangers",
            Self::Late => "late",
            Self::Reordered => "reordered",
            Self::Stall => "stall",
            Self::SlowLink => "slow link",
            Self::Reset => "reset",
            Self::Cut => "cut",
            Self::HalfClose => "half-close",
            Self::AllCut => "all cut",
            Self::Flip => "flip",
            Self::Cancel => "cancel",
            Self::KillSource => "kill source",
            Self::KillNear => "kill near",
            Self::KillFar => "kill far",
            Self::KillDestination => "kill destination",
            Self::DuplicateHello => "duplicate hello",
            Self::StaleHello => "stale hello",
            Self::NoDescriptors => "no descriptors",
            Self::NoThreads => "no threads",
            Self::FewChannels => "few channels",
            Self::ManyChannels => "many channels",
            Self::Refuses => "refuses",
            Self::DestinationResets => "destination resets",
            Self::DestinationPauses => "destination pauses",
            Self::SlowReader => "slow reader",
            Self::LostBytes => "lost bytes",
            Self::BytesComeTwice => "bytes come twice",
            Self::PrefaceComesTwice => "preface comes twice",
            Self::FullDisk => "full disk",
            Self::Second => "second",
        }
    }

    /// The faults of a kind of runs, with their weights. `two` says whether there are two relays.
    ///
    /// A seed's fault depends on the order of this list.
    pub(crate) fn weighted(kind: Kind, two: bool, between: Between) -> Vec<(u64, Self)> {
        let relay = matches!(kind, Kind::Relay | Kind::Relays | Kind::Trunks | Kind::Tls);
        let mut faults = vec![
            (10, Self::None),
            (12, Self::Strangers),
            (8, Self::Late),
            (8, Self::Reordered),
            (6, Self::Stall),
            (4, Self::SlowLink),
            (8, Self::Reset),
            (6, Self::Cut),
            (6, Self::HalfClose),
            (5, Self::AllCut),
            (6, Self::Flip),
            (10, Self::Cancel),
            (4, Self::KillSource),
            (5, Self::KillNear),
            (4, Self::DuplicateHello),
            (4, Self::StaleHello),
            (2, Self::NoDescriptors),
            (2, Self::NoThreads),
        ];
        if relay {
            faults.extend([
                (3, Self::FewChannels),
                (3, Self::ManyChannels),
                (4, Self::Refuses),
                (4, Self::DestinationResets),
                (5, Self::DestinationPauses),
                (4, Self::SlowReader),
                (5, Self::KillDestination),
            ]);
        }
        if kind == Kind::Qemu {
            let made = [
                Self::Flip,
                Self::DuplicateHello,
                Self::StaleHello,
                Self::NoDescriptors,
                Self::NoThreads,
            ];
            faults.retain(|(_, fault)| !made.contains(fault));
            faults.extend([
                (10, Self::Cancel),
                (4, Self::FewChannels),
                (8, Self::DestinationPauses),
                (5, Self::KillDestination),
            ]);
        }
        if two {
            faults.push((5, Self::KillFar));
        }
        if between != Between::Qemu && relay {
            faults.extend([
                (8, Self::Flip),
                (4, Self::LostBytes),
                (4, Self::BytesComeTwice),
            ]);
        }
        if between == Between::Clear && relay {
            faults.push((6, Self::PrefaceComesTwice));
        }
        if matches!(kind, Kind::Receive | Kind::Record) {
            faults.push((6, Self::FullDisk));
        }
        if matches!(kind, Kind::Engines | Kind::Qemu) {
            // These faults need a made source's bytes.
            faults.retain(|(_, fault)| !matches!(fault, Self::DuplicateHello | Self::StaleHello));
        } else {
            faults.push((5, Self::Second));
        }
        faults
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
