//! The reference page of the plugins that ship with the gateway, from their schemas.

use std::fmt::Write as _;

use crate::config::{Node, Value};
use crate::lua::bundle::{BUILT_IN, Bundle};
use crate::lua::loader::Plugin;
use crate::policy::{Field, Kind, OnError};

/// `docs/reference/plugins.md`.
pub(crate) fn page() -> String {
    let mut page = String::from(
        "# Plugins\n\n\
         <!-- Written by `make docs` from plugins/*/schema.lua; do not edit. -->\n\n\
         The plugins that ship with the gateway, and their settings.\n\
         A setting stands in the chain of a route, as in `{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }`.\n\
         Each may also have `id`, a name of its own in the log, and `on_error`: `\"reject\"` or `\"skip\"`.\n",
    );
    for (name, files) in BUILT_IN {
        let plugin =
            Plugin::load(Bundle::built_in(name, files)).expect("a shipped plugin has a valid schema");
        let schema = &plugin.schema;
        let on_error = match schema.on_error {
            OnError::Reject => "reject",
            OnError::Skip => "skip",
        };
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

fn default(field: &Field) -> String {
    match (&field.default, &field.inherit) {
        // An empty list and an empty table are the same in Lua.
        (Some(Node { value: Value::Table(it), .. }), _)
            if matches!(field.kind, Kind::List(_)) && it.iter().next().is_none() =>
        {
            "`[]`".into()
        }
        (Some(node), _) => format!("`{}`", written(&node.value)),
        (None, Some(inherit)) => format!("that of `{inherit}`"),
        (None, None) if field.required => "required".into(),
        (None, None) => "none".into(),
    }
}

/// A value as it would be written in the file.
fn written(value: &Value) -> String {
    match value {
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(|it| written(&it.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) => {
            let entries: Vec<String> =
                table.iter().map(|it| format!("{} = {}", it.key, written(&it.node.value))).collect();
            if entries.is_empty() { "{}".into() } else { format!("{{ {} }}", entries.join(", ")) }
        }
        other => other.shown(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_is_fresh() {
        assert_eq!(include_str!("../../docs/reference/plugins.md"), page(), "run `make docs`");
    }
}
