//! What a plugin is: phases, decisions, the chain, the schema of its settings.
//!
//! Nothing here does I/O or reads a clock. A plugin is anything that implements [`Policy`]; those written in Lua come
//! from `crate::lua`.

mod chain;
mod decision;
mod exchange;
mod function;
mod json_schema;
mod message;
mod meter;
mod native;
mod path;
mod phase;
mod principal;
mod schema;
mod subprotocol;
mod when;

pub use chain::{Answer, Chain, Failure, FailureKind, OnError, Outcome, Policy, Step, Stop, Watch};
pub use decision::{Decision, LocalResponse};
pub use exchange::{Exchange, ResponseHead, SessionFacts};
pub use function::{Function, Functions};
pub(crate) use function::{is_alias, names_function, passed_back, passed_on, passed_on_response, tokens};
pub use message::{Message, Side, Wanted};
pub use meter::{Meter, MeterKind, MeterSpec, Meters, Uncounted};
pub use native::{Native, Natives};
pub use path::Pattern;
pub(crate) use path::{has_dot_segments, readings};
pub use phase::{Phase, Phases};
pub use principal::{Principal, Tokens};
pub use schema::{Field, Kind, References, Schema, Setting, Settings};
pub(crate) use subprotocol::is_reserved;
pub use subprotocol::{CLOSE_ON_REFUSAL, OWN as OWN_SUBPROTOCOL, Offer, RESUME_TOKEN};
pub use when::When;
