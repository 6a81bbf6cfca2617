//! A plugin's contract as JSON Schema (draft 2020-12), for editors and other tools. The gateway itself checks settings by
//! the [`Schema`], with places and hints.

use serde_json::{Map, Value as Json, json};

use crate::config::Value;
use crate::policy::{Field, Kind, Schema};

impl Schema {
    /// What a step of a chain with this plugin may say.
    pub fn to_json(&self, plugin: &str) -> Json {
        let mut properties = Map::new();
        properties.insert("plugin".into(), json!({ "const": plugin, "description": self.summary }));
        for (name, schema) in of_chain() {
            properties.insert(name.into(), schema);
        }
        let mut required = vec![Json::from("plugin")];
        for field in &self.fields {
            properties.insert(field.name.clone(), field.to_json());
            if field.required {
                required.push(field.name.as_str().into());
            }
        }
        json!({
            "type": "object",
            "title": plugin,
            "description": self.summary,
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        })
    }
}

/// What every step may say.
fn of_chain() -> [(&'static str, Json); 5] {
    let texts =
        json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] });
    let wanted = json!({ "anyOf": [{ "const": true }, texts] });
    let mut conditions = json!({
        "method": texts,
        "path": texts,
        "header": { "type": "object", "additionalProperties": wanted },
        "claim": { "type": "object", "additionalProperties": wanted },
    });
    let not = json!({ "type": "object", "properties": conditions, "additionalProperties": false });
    conditions["not"] = not;
    [
        ("id", json!({ "type": "string", "description": "A name of its own in logs." })),
        (
            "on_error",
            json!({ "enum": ["reject", "skip", "close"], "description": "What becomes of a request when the plugin fails." }),
        ),
        ("timeout", json!({ "type": "string", "description": "How long the plugin may wait in one phase." })),
        (
            "dry_run",
            json!({ "type": "boolean", "description": "What the plugin decides is logged, and nothing else becomes of it." }),
        ),
        (
            "when",
            json!({
                "type": "object",
                "description": "For which requests the plugin is asked.",
                "properties": conditions,
                "additionalProperties": false,
            }),
        ),
    ]
}

impl Field {
    fn to_json(&self) -> Json {
        let mut schema = self.kind.to_json();
        schema["description"] = self.doc.as_str().into();
        if let Some(default) = &self.default {
            schema["default"] = written(&default.value, &self.kind);
        }
        if matches!(self.kind, Kind::Integer | Kind::Number) {
            for (key, bound) in [("minimum", self.min), ("maximum", self.max)] {
                if let Some(bound) = bound {
                    schema[key] = bound.into();
                }
            }
        }
        schema
    }
}

impl Kind {
    fn to_json(&self) -> Json {
        match self {
            Kind::Text => json!({ "type": "string" }),
            Kind::Choice(choices) => json!({ "enum": choices }),
            Kind::Integer => json!({ "type": "integer" }),
            Kind::Number => json!({ "type": "number" }),
            Kind::Boolean => json!({ "type": "boolean" }),
            Kind::Duration => json!({ "type": "string", "pattern": "^[0-9]", "examples": ["30s"] }),
            Kind::Size => json!({ "type": "string", "pattern": "^[0-9]", "examples": ["64KiB"] }),
            Kind::List(of) => json!({ "type": "array", "items": of.to_json() }),
            Kind::Map(of) => json!({ "type": "object", "additionalProperties": of.to_json() }),
            Kind::Secret => {
                json!({ "type": "string", "pattern": "^(env|file):", "examples": ["env:NAME", "file:PATH"] })
            }
            Kind::TokenFile => {
                json!({ "type": "string", "pattern": "^file:", "examples": ["file:tokens.toml"] })
            }
            Kind::Url => json!({ "type": "string", "format": "uri", "pattern": "^https?://" }),
            Kind::Header => json!({ "type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$" }),
            Kind::Cidr => json!({ "type": "string", "examples": ["10.0.0.0/8"] }),
        }
    }
}

/// A default as it would be written.
fn written(value: &Value, kind: &Kind) -> Json {
    match value {
        Value::Text(it) => it.as_str().into(),
        Value::Integer(it) => (*it).into(),
        Value::Float(it) => (*it).into(),
        Value::Boolean(it) => (*it).into(),
        Value::List(items) => items.iter().map(|it| written(&it.value, kind)).collect(),
        // An empty list and an empty table are the same in Lua.
        Value::Table(table) if matches!(kind, Kind::List(_)) && table.iter().next().is_none() => json!([]),
        Value::Table(table) => table
            .iter()
            .map(|it| (it.key.clone(), written(&it.node.value, kind)))
            .collect::<Map<_, _>>()
            .into(),
    }
}
