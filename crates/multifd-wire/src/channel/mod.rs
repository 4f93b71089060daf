//! One multifd channel, from its hello to its end: a receiver that parses it and a sender that
//! writes it.

mod receiver;
mod sender;

pub use self::receiver::{ChannelReceiver, Event};
pub use self::sender::ChannelSender;
