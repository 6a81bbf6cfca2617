//! The gateway, the front door and the streaming server, asked through real sockets.
//!
//! Ports come from the system, each test has its own folder, and what is waited for is an event: a time limit only ends
//! a test whose event does not come.
#![allow(unreachable_pub, missing_docs)] // a test program has no readers of its interface
#![allow(clippy::disallowed_methods)] // it reads clocks and variables to end what hangs, not to decide

mod support;

mod bench;
mod breaks;
mod broken;
mod browser;
mod chain;
mod cli;
mod client;
mod docker;
mod docs;
mod editor;
mod embed;
mod events;
mod frontdoor;
mod handshake;
mod hostile;
mod http;
mod library;
mod messages;
mod modules;
mod oidc;
mod plugins;
mod proxies;
mod reload;
mod replicas;
mod resume;
mod session;
mod stream;
mod tls;
mod upstream;
