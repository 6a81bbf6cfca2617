//! What a plugin may decide about a request.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::rejection::Rejection;

/// What a plugin decided.
#[derive(Debug)]
pub enum Decision {
    /// Nothing against it; the next plugin is asked.
    Continue,
    /// The request is not served.
    Reject(Rejection),
    /// The request is answered here, without an upstream.
    Respond(Box<LocalResponse>),
}

/// A response made here, without an upstream.
#[derive(Clone, Debug)]
pub struct LocalResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, without those that say how long the body is.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}
