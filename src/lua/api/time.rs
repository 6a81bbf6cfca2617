//! `time`: what the gateway's clock says, for plugins.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::Clock;
use crate::lua::api::{misuse, module};

/// Where a VM has the time from.
#[derive(Clone)]
pub(crate) enum Time {
    /// The gateway's clock.
    Clock(Clock),
    /// A spec, which sets it: seconds since the Unix epoch.
    Set(Rc<Cell<f64>>),
}

module! {
    "time" "The gateway's clock.";

    /// Seconds since the Unix epoch, with a fraction. A spec sets them with `at`; `os.time` it cannot set.
    #[example("if principal.expires <= time.now() then … end")]
    now fn now(lua, author) -> (f64, "number") {
        Ok(author.kit.time.now())
    }

    /// Seconds since some moment; they never go back, so they are right for what takes how long.
    #[example("local began = time.monotonic()")]
    now fn monotonic(lua, author) -> (f64, "number") {
        Ok(author.kit.monotonic())
    }

    /// A moment as people write it, in UTC (RFC 3339).
    #[example("log.info(\"until \" .. time.rfc3339(claims.exp))")]
    now fn rfc3339(lua, author, seconds: f64) -> (String, "string") {
        let moment = OffsetDateTime::from_unix_timestamp(seconds as i64).ok();
        let text = moment.and_then(|it| it.format(&Rfc3339).ok());
        text.ok_or_else(|| misuse("time.rfc3339: expected seconds since the Unix epoch"))
    }

    /// Waits, at most a minute.
    #[example("time.sleep(0.5)")]
    later fn sleep(lua, author, seconds: f64) -> ((), "nil") {
        let duration = Duration::try_from_secs_f64(seconds).ok().filter(|it| it.as_secs() <= 60);
        let Some(duration) = duration else { return Err(misuse("time.sleep: expected 0 to 60 seconds")) };
        if let Time::Clock(clock) = &author.kit.time {
            clock.sleep(duration).await; // in a spec the time stands still, and nobody waits for it
        }
        Ok(())
    }
}

impl Time {
    pub(crate) fn now(&self) -> f64 {
        match self {
            Time::Clock(clock) => {
                clock.wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |it| it.as_secs_f64())
            }
            Time::Set(at) => at.get(),
        }
    }
}
