//! streamgate: the gateway between browsers and GPU streaming functions.
//!
//! The binary of the same name is [`cli`]; another program embeds a gateway with [`app::App`]:
//!
//! ```no_run
//! use streamgate::app::App;
//! use streamgate::clock::Clock;
//! use streamgate::config::{Env, Role, Sources};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Sources::new(Env::of_process()).resolve(Role::Gateway)?;
//! let app = App::build(config, Clock::system()).await?;
//! println!("{:?}", app.addresses().gateway);
//! app.run(std::future::pending()).await;
//! # Ok(())
//! # }
//! ```
//!
//! `ARCHITECTURE.md` has the way through the modules.

pub mod allocations;
pub mod app;
pub(crate) mod bench;
pub mod cli;
pub mod clock;
pub mod config;
pub(crate) mod frontdoor;
pub(crate) mod gateway;
#[doc(hidden)]
pub mod internals;
pub(crate) mod lua;
pub mod policy;
pub mod rejection;
pub mod secret;
pub(crate) mod session;
pub(crate) mod store;
pub(crate) mod streaming;
pub(crate) mod telemetry;
