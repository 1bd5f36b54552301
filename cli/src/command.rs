//! The verbs other than `bench`: one module each.

mod bounds;
pub(crate) mod check;
pub(crate) mod delayed;
pub(crate) mod group;
mod policy;
pub(crate) mod publish;
pub(crate) mod queue;
pub(crate) mod server;
mod show;
pub(crate) mod show_queue;
pub(crate) mod subscribe;
pub(crate) mod subscription;
pub(crate) mod topic;
pub(crate) mod work;
