//! What operators see: metrics, the access log, the log, the admin endpoints.

mod access_log;
mod admin;
mod log;
mod meters;
mod metrics;

pub(crate) use access_log::{AccessLog, Line};
pub(crate) use admin::{Admin, Policies, Sessions};
pub(crate) use log::install as install_log;
pub(crate) use metrics::{Metrics, Plugins, Requests, reference};
