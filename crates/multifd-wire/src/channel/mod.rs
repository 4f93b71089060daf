//! One multifd channel, from its hello to its end: the machine that takes it apart and the one that
//! puts it together.

mod receiver;
mod sender;

pub use self::receiver::{ChannelReceiver, Event};
pub use self::sender::ChannelSender;
