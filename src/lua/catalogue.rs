//! The reference page of the plugins that ship with the gateway, from their schemas.

use std::fmt::Write as _;

use crate::config::{Node, Problems, Value};
use crate::lua::budget::Watchdog;
use crate::lua::bundle::{BUILT_IN, Bundle};
use crate::lua::loader::Plugin;
use crate::policy::{Field, Kind};

/// `docs/reference/plugins.md`.
pub(crate) fn page() -> String {
    let mut page = String::from(
        "# Plugins\n\n\
         <!-- Written by `make docs` from plugins/*/schema.lua; do not edit. -->\n\n\
         The plugins that ship with the gateway, and their settings.\n\
         A setting stands in the chain of a route, as in `{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }`.\n\
         Each may also have `id`, `when`, `on_error`, `timeout` and `dry_run`, which [every step](../../plugins/README.md#what-a-chain-says-about-a-plugin) of a chain may have.\n",
    );
    let watchdog = Watchdog::new();
    for (name, files) in BUILT_IN {
        let plugin = Plugin::load(Bundle::built_in(name, files), &watchdog)
            .expect("a shipped plugin has a valid schema");
        let schema = &plugin.schema;
        let on_error = schema.on_error.name();
        let write = "a string takes every write";
        writeln!(page, "\n## `{name}`\n\n{}\n", schema.summary).expect(write);
        writeln!(page, "- Phases: {}", schema.phases.names()).expect(write);
        writeln!(page, "- When it fails: `{on_error}`").expect(write);
        for it in &schema.rejections {
            let status = it.status.as_u16();
            writeln!(page, "- Rejects with `{}` ({status}): {}", it.name, it.message).expect(write);
        }
        writeln!(page, "- Guide: [plugins/{name}](../../plugins/{name}/README.md)").expect(write);
        if !schema.fields.is_empty() {
            writeln!(page, "\n| setting | type | default | what it does |\n|---|---|---|---|").expect(write);
        }
        for field in &schema.fields {
            let (name, kind, default) = (&field.name, field.kind.name(), default(field));
            writeln!(page, "| `{name}` | {kind} | {default} | {} |", field.doc).expect(write);
        }
    }
    page
}

/// `docs/reference/plugins.schema.json`: what the steps of a chain may say, for editors and other tools.
pub(crate) fn json_schema() -> String {
    let shipped = BUILT_IN.iter().map(|(name, files)| Bundle::built_in(name, files));
    json_schema_of(shipped).expect("a shipped plugin has a valid schema")
}

/// The same for other plugins.
///
/// # Errors
/// What is wrong with their contracts.
pub(crate) fn json_schema_of(bundles: impl IntoIterator<Item = Bundle>) -> Result<String, Problems> {
    let watchdog = Watchdog::new();
    let mut definitions = serde_json::Map::new();
    let mut problems = Problems::new();
    for bundle in bundles {
        let name = bundle.name.clone();
        match Plugin::load(bundle, &watchdog) {
            Ok(plugin) => drop(definitions.insert(name.clone(), plugin.schema.to_json(&name))),
            Err(more) => problems.extend(more),
        }
    }
    let references: Vec<serde_json::Value> =
        definitions.keys().map(|it| serde_json::json!({ "$ref": format!("#/$defs/{it}") })).collect();
    let names: Vec<&String> = definitions.keys().collect();
    let schema = serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A step of a chain of streamgate",
        "oneOf": [{ "enum": names }, { "oneOf": references }],
        "$defs": definitions,
    });
    problems.into_result().map(|()| format!("{schema:#}\n"))
}

fn default(field: &Field) -> String {
    match (&field.default, &field.inherit) {
        // An empty list and an empty table are the same in Lua.
        (Some(Node { value: Value::Table(it), .. }), _)
            if matches!(field.kind, Kind::List(_)) && it.iter().next().is_none() =>
        {
            "`[]`".into()
        }
        (Some(node), _) => format!("`{}`", node.value.written()),
        (None, Some(inherit)) => format!("that of `{inherit}`"),
        (None, None) if field.required => "required".into(),
        (None, None) => "none".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_is_fresh() {
        assert_eq!(include_str!("../../docs/reference/plugins.md"), page(), "run `make docs`");
        assert_eq!(
            include_str!("../../docs/reference/plugins.schema.json"),
            json_schema(),
            "run `make docs`"
        );
    }
}
