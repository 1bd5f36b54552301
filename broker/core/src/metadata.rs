//! Owns the cluster's metadata: commands, and the image that they fold into. Never chooses an id, an
//! address or a time: the caller puts them into the command. Driven by the join, which appends each
//! command to the metadata log (`TopicId::METADATA`, kind `Metadata`) after `Image::check`, and applies
//! it once it is durable; a controller group comes in front of that log later.

mod circles;
mod command;
mod image;
mod patterns;
mod rules;
mod settings;
mod snapshot;

pub use command::{Command, TopicChange};
pub use image::{Applied, Broker, Image, ImageError, Subscription, Topic};
pub use patterns::Pattern;
pub use rules::{
    QUEUE_SUBSCRIPTION, complete_policy, validate_config, validate_name, validate_policy,
    validate_subscription_name,
};
