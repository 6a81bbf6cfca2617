//! `password`: passwords against what was kept of them.

use std::num::NonZero;
use std::sync::LazyLock;

use argon2::{Argon2, PasswordHash, PasswordVerifier as _};
use mlua::LuaString;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use crate::lua::api::{misuse, module};

/// Longest password in bytes. bcrypt looks at 72 of them alone.
const LONGEST: usize = 1024;

/// Passwords that are looked at at the same time: each takes a core, and its memory. Strangers begin as many as they like.
static TURNS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, NonZero::get)));

/// What a hash may cost at most: a minute of a core is no login but a mistake.
const MOST_BCRYPT: u32 = 15;
const MOST_MEMORY: u32 = 256 << 10;
const MOST_PASSES: u32 = 16;

module! {
    "password" "Passwords against what was kept of them: bcrypt (`$2b$`, as `htpasswd -B` makes it) and argon2id (`$argon2id$`). They are slow on purpose, so this is done beside the worker; remember for a while who was right.";

    /// Whether a password is the one of which this hash was kept. A hash of another form is an error. As many as there are
    /// cores are looked at at the same time, the others wait.
    #[example("if password.verify(presented, conf.users[user]) then … end")]
    later fn verify(lua, author, password: LuaString, hash: LuaString) -> (bool, "boolean") {
        let (password, hash) = (password.as_bytes().to_vec(), hash.to_string_lossy());
        if let Err(reason) = check(&hash) {
            return Err(misuse(format!("password.verify: {reason}")));
        }
        if password.len() > LONGEST {
            return Ok(false);
        }
        compare(password, hash).await.map_err(mlua::Error::external)
    }

    /// True when `verify` takes this hash; nil and a reason when not. For `configure`.
    #[example("assert(password.check_hash(hash))")]
    now fn check_hash(lua, author, hash: LuaString) -> ((Option<bool>, Option<String>), "boolean?, string?") {
        match check(&hash.to_string_lossy()) {
            Ok(()) => Ok((Some(true), None)),
            Err(reason) => Ok((None, Some(reason))),
        }
    }
}

/// Waits for a turn, and compares. Whoever has left before costs nothing; a hash that was begun counts to its end.
async fn compare(password: Vec<u8>, hash: String) -> Result<bool, JoinError> {
    let turn = TURNS.acquire().await.expect("it is never closed");
    let done = tokio::task::spawn_blocking(move || {
        let is_right = is_right(&password, &hash);
        drop(turn);
        is_right
    });
    done.await
}

fn check(hash: &str) -> Result<(), String> {
    if hash.starts_with("$2") {
        let cost = hash.parse::<bcrypt::HashParts>().map_err(|_| "not a bcrypt hash")?.get_cost();
        return if cost <= MOST_BCRYPT {
            Ok(())
        } else {
            Err(format!("a cost of {cost} is more than {MOST_BCRYPT}"))
        };
    }
    let parsed = PasswordHash::new(hash).map_err(|_| "neither a bcrypt nor an argon2id hash")?;
    if parsed.algorithm.as_str() != "argon2id" || parsed.hash.is_none() {
        return Err("neither a bcrypt nor an argon2id hash".into());
    }
    let params = argon2::Params::try_from(&parsed).map_err(|it| it.to_string())?;
    if params.m_cost() > MOST_MEMORY || params.t_cost() > MOST_PASSES {
        return Err(format!("it costs more than {} MiB or {MOST_PASSES} passes", MOST_MEMORY >> 10));
    }
    Ok(())
}

fn is_right(password: &[u8], hash: &str) -> bool {
    if hash.starts_with("$2") {
        return bcrypt::verify(password, hash).unwrap_or(false);
    }
    PasswordHash::new(hash).is_ok_and(|it| Argon2::default().verify_password(password, &it).is_ok())
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn no_more_passwords_are_looked_at_than_there_are_turns() {
        let hash = "$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm".to_owned();
        let n_turns = TURNS.available_permits();
        assert!((1..=1024).contains(&n_turns));
        let taken = TURNS.acquire_many(n_turns as u32).await.expect("all of them");
        let mut left = Box::pin(compare(b"hunter2".to_vec(), hash.clone()));
        let mut waiting = Box::pin(compare(b"hunter2".to_vec(), hash));
        assert!(poll!(&mut left).is_pending() && poll!(&mut waiting).is_pending());
        drop(left);
        drop(taken);
        assert!(waiting.await.expect("it is done"));
        assert_eq!(TURNS.available_permits(), n_turns);
    }
}
