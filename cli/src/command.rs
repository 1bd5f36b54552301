//! The verbs other than `bench`: one module each.

pub(crate) mod check;
pub(crate) mod publish;
//SERVER
mod show;
pub(crate) mod subscribe;
pub(crate) mod subscription;
pub(crate) mod topic;
