//! JSON as security wants it: a name that occurs twice in an object is refused, and nesting is bounded.
//!
//! Two readers that differ in which of two equal names they take can be played against each other
//! (RFC 7515 §4, RFC 8725 §2.4).

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The object that the text is; nothing if it is something else or breaks a rule. The caller bounds its size.
pub(crate) fn object(text: &[u8]) -> Option<Map<String, Value>> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Strict { depth: DEEPEST }.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    match value {
        Value::Object(it) => Some(it),
        _ => None,
    }
}

/// Reads one value, in which `depth` more levels may follow.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(Strict { depth })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, it: bool) -> Result<Value, E> {
        Ok(Value::Bool(it))
    }

    fn visit_i64<E: Error>(self, it: i64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_u64<E: Error>(self, it: u64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_f64<E: Error>(self, it: f64) -> Result<Value, E> {
        Number::from_f64(it).map(Value::Number).ok_or_else(|| E::custom("no finite number"))
    }

    fn visit_str<E: Error>(self, it: &str) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_string<E: Error>(self, it: String) -> Result<Value, E> {
        Ok(Value::String(it))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = from.next_element_seed(deeper)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut entries = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            if entries.contains_key(&name) {
                return Err(A::Error::custom("a name occurs twice"));
            }
            let value = from.next_value_seed(deeper)?;
            entries.insert(name, value);
        }
        Ok(Value::Object(entries))
    }
}

/// As `streamgate.json` has it.
const DEEPEST: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_object_with_different_names_is_read() {
        let check =
            |text: &str, expected: bool| assert_eq!(object(text.as_bytes()).is_some(), expected, "{text}");
        check(r#"{"a":1,"b":[true,null,-2,1.5,"x",{"a":{}}]}"#, true);
        check(r#"{"a":1,"a":1}"#, false);
        check(r#"{"a":1,"\u0061":2}"#, false); // the same name, written in another way
        check(r#"{"b":[{"a":1,"a":2}]}"#, false);
        check(r#"{"a":1e400}"#, false);
        check(r#"{"a":NaN}"#, false);
        check(r#"{"a":"\ud800"}"#, false);
        check(r#"{} {}"#, false);
        check(r#"[]"#, false);
        check("", false);
    }

    #[test]
    fn nesting_ends_at_32_levels() {
        let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(object(nested(31).as_bytes()).is_some());
        assert!(object(nested(32).as_bytes()).is_none());
        assert!(object(nested(100_000).as_bytes()).is_none());
    }
}
