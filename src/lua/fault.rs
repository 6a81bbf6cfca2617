//! What a script's error says: first what is wrong and where, then the calls that led to it.

use mlua::Error;

use crate::lua::api::Misuse;
use crate::policy::{Failure, FailureKind};

/// What stands between a message and its calls.
const TRACEBACK: &str = "stack traceback:";

/// How a message begins about an argument of a function whose name Rust does not know; Lua does.
const ARGUMENT: &str = "argument ";

/// The chunk of the gateway's own that plugins call into without knowing it.
const PRELUDE: &str = "prelude.lua:";

/// An error of a script for the operator: file and line, message, traceback.
///
/// Lua gives an error its place only where Lua code raises it. One of a function in C or Rust has the place of the call.
pub(super) fn describe(error: &Error) -> Failure {
    let (kind, text) = said(error);
    let mut message = Vec::new();
    let mut calls = Vec::new();
    let mut is_call = false;
    for line in text.lines() {
        match line.strip_prefix('\t') {
            _ if line == TRACEBACK => is_call = true,
            // The frame of who made the traceback.
            Some("[C]: in ?") if is_call && calls.is_empty() => {}
            Some(call) if is_call => calls.push(call),
            _ => message.push(line),
        }
    }
    let mut message = message.join("\n");
    if let Some(inner) = calls.first().and_then(|it| it.strip_prefix("[C]: in ")) {
        if inner.starts_with("for iterator") && message.starts_with("attempt to index") {
            message += ", which is what the loop goes over";
        }
        if message.starts_with(ARGUMENT)
            && let Some(name) = inner.split('\'').nth(1)
        {
            message = format!("{name}: {message}");
        }
    }
    let message = placed(message, &calls);
    let detail = match calls.is_empty() {
        true => message,
        false => format!("{message}\n{TRACEBACK}\n\t{}", calls.join("\n\t")),
    };
    Failure { kind, detail }
}

/// The same, for who wrote the script and is looking at it: only the calls that say more than the message does.
pub(super) fn brief(detail: &str) -> String {
    let Some((message, calls)) = detail.split_once(&format!("\n{TRACEBACK}\n")) else {
        return detail.to_owned();
    };
    let calls: Vec<&str> = calls.lines().map(str::trim).filter(|it| is_of_author(it)).collect();
    // The first one is where the message says that it is.
    let says_more = place(message).is_some() && calls.len() > 1;
    if says_more { format!("{message}\n  {}", calls.join("\n  ")) } else { message.to_owned() }
}

/// Where a message says that something is wrong, and the rest of it: `plugins/x/plugin.lua:7: …` and, about a whole file,
/// `plugins/x/plugin.lua: …`.
pub(super) fn place(message: &str) -> Option<(&str, usize, &str)> {
    let (head, rest) = message.split_once(": ")?;
    if head.contains([' ', '\n']) {
        return None;
    }
    let (path, line) = match head.rsplit_once(':') {
        Some((path, line)) => (path, line.parse().ok()?),
        None => (head, 0),
    };
    path.ends_with(".lua").then_some((path, line, rest))
}

/// Kind and text of an error, each traceback after what it belongs to.
fn said(error: &Error) -> (FailureKind, String) {
    match error {
        Error::CallbackError { traceback, cause } => {
            let (kind, text) = said(cause);
            (kind, format!("{text}\n{traceback}"))
        }
        Error::MemoryError(message) => (FailureKind::Memory, message.clone()),
        Error::ExternalError(cause) if cause.is::<Misuse>() => (FailureKind::Contract, cause.to_string()),
        Error::RuntimeError(message) | Error::SyntaxError { message, .. } => {
            (FailureKind::Runtime, message.clone())
        }
        Error::BadArgument { to, pos, name, cause } => {
            (FailureKind::Runtime, bad_argument(to.as_deref(), *pos, name.as_deref(), cause))
        }
        other => (FailureKind::Runtime, other.to_string()),
    }
}

/// A message with its place.
fn placed(message: String, calls: &[&str]) -> String {
    let message = match message.strip_prefix(PRELUDE).and_then(|it| it.split_once(": ")) {
        Some((_, rest)) => rest.to_owned(),
        None => message,
    };
    if place(&message).is_some_and(|(_, line, _)| line > 0) {
        return message;
    }
    let is_raised = calls.first().is_some_and(|it| it.ends_with("in function 'error'"))
        && !calls.get(1).is_some_and(|it| it.starts_with(PRELUDE));
    let message = match unprintable(&message).filter(|_| is_raised) {
        Some(what) => format!("`error` got {what}, and nobody can read that: give it a string"),
        None if is_raised => return message, // `error(…, 0)` says that the place is nobody's business
        None => message,
    };
    let of_author = calls.iter().find(|it| is_of_author(it));
    match of_author.and_then(|it| it.split_once(": in ")) {
        Some((place, _)) => format!("{place}: {message}"),
        None => message,
    }
}

/// Whether a call of a traceback is in Lua that somebody wrote for this plugin or its spec.
fn is_of_author(call: &str) -> bool {
    call.contains(".lua:") && !call.starts_with(PRELUDE) && !call.starts_with("lua/streamgate/spec.lua:")
}

/// What kind of value an error was that is no text.
fn unprintable(message: &str) -> Option<&'static str> {
    let kinds = [
        ("table: ", "a table"),
        ("function: ", "a function"),
        ("thread: ", "a coroutine"),
        ("userdata: ", "a handle"),
    ];
    let is_of = |kind: &str| message.strip_prefix(kind).is_some_and(|it| it.starts_with("0x"));
    match message {
        "nil" => Some("nil"),
        _ => kinds.iter().find(|(kind, _)| is_of(kind)).map(|(_, what)| *what),
    }
}

/// An argument that is none, in the words of the author: `meter:add: argument 1 is a string, expected a number`.
fn bad_argument(to: Option<&str>, position: usize, name: Option<&str>, cause: &Error) -> String {
    let method = to.and_then(|it| it.split_once('.')).map(|(of, method)| format!("{}:{method}", handle(of)));
    if let (Some(method), Some("self")) = (&method, name) {
        return format!("{method} was called with a dot, it needs a colon: `{method}(…)`");
    }
    // The first argument of a method is what stands before the colon.
    let position = if method.is_some() { position.saturating_sub(1) } else { position };
    let function = method.map_or_else(String::new, |it| format!("{it}: "));
    match cause {
        Error::FromLuaConversionError { from, to, .. } => {
            let from = if *from == "nil" { "nil".to_owned() } else { format!("a {from}") };
            format!("{function}{ARGUMENT}{position} is {from}, expected {}", expected(to))
        }
        other => format!("{function}{ARGUMENT}{position}: {other}"),
    }
}

/// What a handle is called that Rust knows by this type.
fn handle(of: &str) -> String {
    match of {
        "RegexHandle" => "pattern".into(),
        "IpSet" => "set".into(),
        other => other.trim_end_matches("Handle").to_ascii_lowercase(),
    }
}

/// What a Rust type is in Lua.
fn expected(of: &str) -> String {
    match of {
        "f64" | "f32" => "a number".into(),
        "i64" | "u64" | "i32" | "u32" | "u16" | "usize" => "a whole number".into(),
        "LuaString" | "BString" | "String" | "string" => "a string".into(),
        other => format!("a {}", other.to_ascii_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(
            describe(&Error::RuntimeError(text.into())).detail.lines().next(),
            Some(expected),
            "{text}"
        );
    }

    #[test]
    fn an_error_has_the_place_of_the_author() {
        let at = "\n\tplugins/x/plugin.lua:7: in field 'helper'\n\tplugins/x/plugin.lua:9: in main chunk";
        // Lua has placed it.
        check(
            &format!("plugins/x/plugin.lua:3: oh\nstack traceback:\n\t[C]: in ?{at}"),
            "plugins/x/plugin.lua:3: oh",
        );
        // A function in C has not.
        check(
            &format!(
                "attempt to index a nil value\nstack traceback:\n\t[C]: in ?\n\t[C]: in for iterator 'for iterator'{at}"
            ),
            "plugins/x/plugin.lua:7: attempt to index a nil value, which is what the loop goes over",
        );
        // The place of the gateway's own code helps nobody.
        check(
            &format!(
                "prelude.lua:78: bad argument\nstack traceback:\n\t[C]: in function 'string.rep'\n\tprelude.lua:78: in field 'rep'{at}"
            ),
            "plugins/x/plugin.lua:7: bad argument",
        );
        // The author wanted none.
        let raised = format!("\nstack traceback:\n\t[C]: in ?\n\t[C]: in function 'error'{at}");
        check(&format!("the same hour{raised}"), "the same hour");
        check(&format!("note: the same hour{raised}"), "note: the same hour");
        let odd = "got a table, and nobody can read that: give it a string";
        check(&format!("table: 0x20000244380{raised}"), &format!("plugins/x/plugin.lua:7: `error` {odd}"));
        check(&format!("table: empty{raised}"), "table: empty");
        check("no traceback", "no traceback");
    }

    #[test]
    fn only_calls_that_say_more_are_told_to_an_author() {
        let check = |detail: &str, expected: &str| assert_eq!(brief(detail), expected);
        let one = "\nstack traceback:\n\t[C]: in field 'counter'\n\ta/plugin.lua:1: in main chunk";
        check(&format!("a/plugin.lua:1: oh{one}"), "a/plugin.lua:1: oh");
        let two = "\nstack traceback:\n\ta/plugin.lua:1: in local 'f'\n\ta/plugin.lua:2: in main chunk";
        check(
            &format!("a/plugin.lua:1: oh{two}"),
            "a/plugin.lua:1: oh\n  a/plugin.lua:1: in local 'f'\n  a/plugin.lua:2: in main chunk",
        );
        check(&format!("the same hour{two}"), "the same hour");
        check("oh", "oh");
    }
}
