//! A header's name from a script.

use std::cell::RefCell;
use std::collections::HashMap;

use http::HeaderName;
use mlua::{FromLua, Lua, LuaString, Value};

use crate::lua::api::misuse;

/// A header's name. One that was used before is found without an allocation.
#[derive(Clone)]
pub(crate) struct Name {
    known: Option<HeaderName>,
    given: LuaString,
}

/// The names that the scripts of a VM have used: they are few. Lua has one copy of each short string, so where it stands
/// says what it is, as long as it is kept.
#[derive(Default)]
pub(crate) struct Names(RefCell<HashMap<usize, (LuaString, HeaderName)>>);

/// Most names that are kept.
const MOST: usize = 512;

/// Longest string of which Lua has one copy (`LUAI_MAXSHORTLEN`).
const SHORT: usize = 40;

impl Name {
    /// The name, if it is one.
    pub(crate) fn get(&self) -> Option<&HeaderName> {
        self.known.as_ref()
    }

    /// The name, for a function that cannot do without.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn expect(self, function: &str) -> mlua::Result<HeaderName> {
        self.known.ok_or_else(|| {
            misuse(format!("{function}: {:?} is not a header name", self.given.to_string_lossy()))
        })
    }
}

impl Names {
    fn find(&self, given: &LuaString) -> Option<HeaderName> {
        let place = given.to_pointer() as usize;
        if let Some((_, name)) = self.0.borrow().get(&place) {
            return Some(name.clone());
        }
        let text = given.as_bytes();
        let name = HeaderName::from_bytes(&text).ok()?;
        let mut names = self.0.borrow_mut();
        if text.len() <= SHORT && names.len() < MOST {
            names.insert(place, (given.clone(), name.clone()));
        }
        Some(name)
    }
}

impl FromLua for Name {
    fn from_lua(value: Value, lua: &Lua) -> mlua::Result<Self> {
        let given = LuaString::from_lua(value, lua)?;
        let known = lua.app_data_ref::<Names>().expect("each VM is made with it").find(&given);
        Ok(Name { known, given })
    }
}
