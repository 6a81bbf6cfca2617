//! `timer`: what is done again and again.

use std::time::Duration;

use mlua::{Function, Table};

use crate::lua::api::modules::Timer;
use crate::lua::api::{misuse, module};
use crate::policy::Phase;

/// Most timers of one instance.
const MOST: usize = 16;

module! {
    "timer" "What is done again and again, beside all requests.";

    /// Runs a function every so many seconds, from a tenth to a day; to be called in `init`. With `{ once = true }` it runs
    /// in one worker alone. It may wait, and the next run begins that long after its end. An error is logged.
    #[example("timer.every(5, function() … end, { once = true })")]
    now fn every(lua, author, seconds: f64, run: Function, options: Option<Table>) -> ((), "nil") {
        if author.phase() != Some(Phase::Init) {
            return Err(misuse("timer.every can be called in init alone"));
        }
        if !(0.1..=86400.0).contains(&seconds) {
            return Err(misuse("timer.every: expected 0.1 to 86400 seconds"));
        }
        let once = options.map_or(Ok(None), |it| it.raw_get::<Option<bool>>("once"))?.unwrap_or(false);
        let mut timers = author.timers.borrow_mut();
        if timers.len() == MOST {
            return Err(misuse(format!("timer.every: there are {MOST} timers already")));
        }
        timers.push(Timer { every: Duration::from_secs_f64(seconds), once, run });
        Ok(())
    }
}
