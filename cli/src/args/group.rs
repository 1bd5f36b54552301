//! Owns the shape of `postrider group`: verbs, flags and their help. Runs nothing.

use clap::Subcommand;

use super::ClientOptions;
use crate::output::TableFormat;
use crate::start::From;

#[derive(Subcommand, Debug)]
pub(crate) enum GroupCommand {
    /// List a topic's consumer groups: its durable subscriptions, with members and lag
    #[command(visible_alias = "list")]
    Ls {
        /// The topic's name
        topic: String,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: TableFormat,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Show who is in a group and who reads which partition
    Show {
        /// The topic's name
        topic: String,
        /// The group's name
        name: String,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: TableFormat,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Move a group to another position; its members go on there
    Seek {
        /// The topic's name
        topic: String,
        /// The group's name
        name: String,
        /// earliest, latest, -N (the last N of each partition), an offset, a time, or an age such as 15m
        #[arg(long, allow_hyphen_values = true, value_name = "POSITION")]
        to: From,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Remove a group with its position; its members end
    #[command(visible_alias = "delete")]
    Rm {
        /// The topic's name
        topic: String,
        /// The group's name
        name: String,
        #[command(flatten)]
        client: ClientOptions,
    },
}
