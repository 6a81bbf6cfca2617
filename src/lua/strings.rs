//! `find`, `match`, `gmatch` and `gsub` for scripts, which end when the budget does (see [`crate::lua::pattern`]).

use std::cell::RefCell;

use mlua::{IntoLuaMulti as _, Lua, LuaString, MultiValue, Table, Value, Variadic};

use crate::lua::budget::{self, Budget};
use crate::lua::pattern::{self, Capture, Match, Matches, PatternError};

/// Longest string that `gsub` makes, in bytes.
const LONGEST: usize = 1 << 20;

/// A table with the four functions.
pub(super) fn patterns(lua: &Lua, budget: &Budget) -> mlua::Result<Table> {
    let table = lua.create_table()?;

    let clock = budget.clone();
    table.raw_set(
        "find",
        lua.create_function(move |lua, (s, p, init, plain): (LuaString, LuaString, Option<i64>, Value)| {
            let (s, p) = (s.as_bytes(), p.as_bytes());
            let Some(init) = offset(init, s.len()) else { return Value::Nil.into_lua_multi(lua) };
            let is_spent = || clock.is_spent();
            let mut steps = pattern::Budget::new(&is_spent);
            if plain.as_boolean().unwrap_or(!plain.is_nil()) || !pattern::has_specials(&p) {
                let at = pattern::search(&s, &p, init, &mut steps).map_err(|it| error(it, "find"))?;
                return match at {
                    Some(at) => (at + 1, at + p.len()).into_lua_multi(lua),
                    None => Value::Nil.into_lua_multi(lua),
                };
            }
            let found = pattern::find(&s, &p, init, &mut steps).map_err(|it| error(it, "find"))?;
            let Some(found) = found else { return Value::Nil.into_lua_multi(lua) };
            let mut values = captures(lua, &s, &found, found.n_captures(), "find")?;
            values.push_front(Value::Integer(found.end as i64));
            values.push_front(Value::Integer(found.start as i64 + 1));
            Ok(values)
        })?,
    )?;

    let clock = budget.clone();
    table.raw_set(
        "match",
        lua.create_function(move |lua, (s, p, init): (LuaString, LuaString, Option<i64>)| {
            let (s, p) = (s.as_bytes(), p.as_bytes());
            let Some(init) = offset(init, s.len()) else { return Ok((Value::Nil, Variadic::new())) };
            let is_spent = || clock.is_spent();
            let mut steps = pattern::Budget::new(&is_spent);
            match pattern::find(&s, &p, init, &mut steps).map_err(|it| error(it, "match"))? {
                // Nearly all patterns have one capture or none: no list is made for it.
                Some(found) => {
                    let first = capture(lua, &s, &found, 0, "match")?;
                    let others = (1..found.n_values()).map(|it| capture(lua, &s, &found, it, "match"));
                    Ok((first, others.collect::<mlua::Result<Variadic<_>>>()?))
                }
                None => Ok((Value::Nil, Variadic::new())),
            }
        })?,
    )?;

    let clock = budget.clone();
    table.raw_set(
        "gmatch",
        lua.create_function(move |lua, (s, p, init): (LuaString, LuaString, Option<i64>)| {
            let length = s.as_bytes().len();
            let matches = RefCell::new(Matches::gmatch(offset(init, length).unwrap_or(length + 1)));
            let clock = clock.clone();
            lua.create_function(move |lua, ()| {
                let (s, p) = (s.as_bytes(), p.as_bytes());
                let is_spent = || clock.is_spent();
                let mut steps = pattern::Budget::new(&is_spent);
                let next = matches.borrow_mut().next(&s, &p, &mut steps);
                match next.map_err(|it| error(it, "gmatch"))? {
                    Some(found) => captures(lua, &s, &found, found.n_values(), "gmatch"),
                    None => Value::Nil.into_lua_multi(lua),
                }
            })
        })?,
    )?;

    let clock = budget.clone();
    table.raw_set(
        "gsub",
        lua.create_function(move |lua, (s, p, by, most): (LuaString, LuaString, Value, Option<i64>)| {
            let is_spent = || clock.is_spent();
            let mut steps = pattern::Budget::new(&is_spent);
            gsub(lua, &s, &p, &by, most, &mut steps)
        })?,
    )?;
    Ok(table)
}

fn gsub(
    lua: &Lua,
    subject: &LuaString,
    pattern: &LuaString,
    by: &Value,
    most: Option<i64>,
    steps: &mut pattern::Budget<'_>,
) -> mlua::Result<(LuaString, i64)> {
    let failed = |it| error(it, "gsub");
    let (s, p) = (subject.as_bytes(), pattern.as_bytes());
    let most = most.map_or(usize::MAX, |it| usize::try_from(it).unwrap_or(0));
    let text = match by {
        Value::String(_) | Value::Integer(_) | Value::Number(_) => lua.coerce_string(by.clone())?,
        Value::Table(_) | Value::Function(_) => None,
        other => {
            let message = "bad argument #3 to 'gsub' (string/function/table expected, got ";
            return Err(mlua::Error::runtime(format!("{message}{})", other.type_name())));
        }
    };
    if let Some(text) = text {
        let (result, n) = pattern::gsub(&s, &p, &text.as_bytes(), most, LONGEST, steps).map_err(failed)?;
        return Ok((lua.create_string(&*result)?, n as i64));
    }
    let mut matches = Matches::gsub(&p);
    let (mut out, mut rest, mut n) = (Vec::new(), 0, 0);
    while n < most {
        let Some(found) = matches.next(&s, &p, steps).map_err(failed)? else { break };
        n += 1;
        let value: Value = match by {
            Value::Table(table) => table.get(capture(lua, &s, &found, 0, "gsub")?)?,
            Value::Function(function) => {
                function.call(captures(lua, &s, &found, found.n_values(), "gsub")?)?
            }
            _ => unreachable!("other replacements were refused above"),
        };
        pattern::append(&mut out, &s[rest..found.start], LONGEST, steps).map_err(failed)?;
        match &value {
            Value::Nil | Value::Boolean(false) => {
                pattern::append(&mut out, &s[found.start..found.end], LONGEST, steps).map_err(failed)?;
            }
            Value::String(_) | Value::Integer(_) | Value::Number(_) => {
                let text = lua.coerce_string(value)?.expect("strings and numbers have a text");
                pattern::append(&mut out, &text.as_bytes(), LONGEST, steps).map_err(failed)?;
            }
            other => {
                let message = format!("invalid replacement value (a {})", other.type_name());
                return Err(mlua::Error::runtime(message));
            }
        }
        rest = found.end;
    }
    if n == 0 {
        drop(s);
        return Ok((subject.clone(), 0));
    }
    pattern::append(&mut out, &s[rest..], LONGEST, steps).map_err(failed)?;
    Ok((lua.create_string(out)?, n as i64))
}

/// Where a search begins, from Lua's way to say it; none behind the end.
fn offset(init: Option<i64>, length: usize) -> Option<usize> {
    let init = init.unwrap_or(1);
    let at = match init {
        1.. => usize::try_from(init - 1).unwrap_or(usize::MAX),
        0 => 0,
        _ => length.saturating_sub(usize::try_from(init.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    (at <= length).then_some(at)
}

fn captures(lua: &Lua, subject: &[u8], found: &Match, n: usize, function: &str) -> mlua::Result<MultiValue> {
    (0..n).map(|it| capture(lua, subject, found, it, function)).collect()
}

fn capture(lua: &Lua, subject: &[u8], found: &Match, idx: usize, function: &str) -> mlua::Result<Value> {
    match found.capture(idx).map_err(|it| error(it, function))? {
        Capture::Span { start, end } => lua.create_string(&subject[start..end]).map(Value::String),
        Capture::Position(at) => Ok(Value::Integer(at as i64 + 1)),
    }
}

fn error(error: PatternError, function: &str) -> mlua::Error {
    match error {
        PatternError::Exhausted => mlua::Error::runtime(budget::SPENT),
        other => mlua::Error::runtime(format!("string.{function}: {other}")),
    }
}
