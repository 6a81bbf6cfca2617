//! A configuration value as it was written, with its place: what stands between TOML and settings.

use std::path::PathBuf;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::config::problem::{Place, Problem, Problems};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it was written.
    pub place: Place,
}

/// A value as it was written.
#[derive(Clone, Debug)]
pub enum Value {
    /// A string; also a date, which no setting takes.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Boolean(bool),
    /// A list.
    List(Vec<Node>),
    /// A table, in the order of the file.
    Table(Table),
}

/// A table in the order in which it was written.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: Vec<Entry>,
}

/// One key of a [`Table`].
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub place: Place,
    /// Its value.
    pub node: Node,
}

impl Value {
    /// What kind of value it is, in a reader's words.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number with a fraction",
            Value::Boolean(_) => "a boolean",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// The value as TOML writes it, cut to what fits a line.
    pub fn shown(&self) -> String {
        let text = match self {
            Value::Text(it) => format!("{it:?}"),
            Value::Integer(it) => it.to_string(),
            Value::Float(it) => it.to_string(),
            Value::Boolean(it) => it.to_string(),
            Value::List(_) => "[…]".into(),
            Value::Table(_) => "{…}".into(),
        };
        if text.chars().count() > 60 { text.chars().take(57).chain("…\"".chars()).collect() } else { text }
    }

    /// The value as it would be written in a file, whole.
    pub(crate) fn written(&self) -> String {
        match self {
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(|it| it.value.written()).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Table(table) => {
                let entries: Vec<String> =
                    table.iter().map(|it| format!("{} = {}", it.key, it.node.value.written())).collect();
                if entries.is_empty() { "{}".into() } else { format!("{{ {} }}", entries.join(", ")) }
            }
            other => other.shown(),
        }
    }
}

impl Node {
    /// A string with a place of its own, as an environment variable gives it.
    pub fn text(value: impl Into<String>, place: Place) -> Self {
        Node { value: Value::Text(value.into()), place }
    }

    /// The table in it, if it is one.
    pub fn as_table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }
}

impl Table {
    /// The entries, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The value under one key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries.iter().find(|it| it.key == key).map(|it| &it.node)
    }

    /// The value under a dotted path.
    pub fn path(&self, path: &str) -> Option<&Node> {
        match path.split_once('.') {
            None => self.get(path),
            Some((head, rest)) => self.get(head)?.as_table()?.path(rest),
        }
    }
}

impl FromIterator<Entry> for Table {
    fn from_iter<I: IntoIterator<Item = Entry>>(iter: I) -> Self {
        Table { entries: iter.into_iter().collect() }
    }
}

/// Parses a TOML document; every mistake of its syntax is reported.
pub(crate) fn parse(path: &Arc<PathBuf>, text: &str) -> Result<Table, Problems> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(convert_table(path, text, table.get_ref()));
    }
    let mut problems = Problems::new();
    for error in errors {
        let place = Place::at(path, text, error.span().map_or(0, |it| it.start));
        problems.push(Problem::new(place, "not TOML", error.message().to_owned()));
    }
    Err(problems)
}

/// What there is of a TOML document, with mistakes in it or not.
pub(crate) fn parse_some(path: &Arc<PathBuf>, text: &str) -> Table {
    convert_table(path, text, DeTable::parse_recoverable(text).0.get_ref())
}

fn convert_table(path: &Arc<PathBuf>, text: &str, table: &DeTable<'_>) -> Table {
    let mut entries: Vec<(usize, Entry)> = table
        .iter()
        .map(|(key, value)| {
            let start = key.span().start;
            let entry = Entry {
                key: key.get_ref().to_string(),
                place: Place::at(path, text, start),
                node: convert(path, text, value.get_ref(), value.span().start),
            };
            (start, entry)
        })
        .collect();
    entries.sort_by_key(|(start, _)| *start);
    Table { entries: entries.into_iter().map(|(_, it)| it).collect() }
}

fn convert(path: &Arc<PathBuf>, text: &str, value: &DeValue<'_>, start: usize) -> Node {
    let value = match value {
        DeValue::String(it) => Value::Text(it.to_string()),
        DeValue::Integer(it) => {
            let digits = it.as_str().replace('_', "");
            i64::from_str_radix(&digits, it.radix()).map_or_else(|_| Value::Text(digits), Value::Integer)
        }
        DeValue::Float(it) => {
            it.as_str().replace('_', "").parse().map_or(Value::Float(f64::NAN), Value::Float)
        }
        DeValue::Boolean(it) => Value::Boolean(*it),
        DeValue::Datetime(it) => Value::Text(it.to_string()),
        DeValue::Array(items) => {
            Value::List(items.iter().map(|it| convert(path, text, it.get_ref(), it.span().start)).collect())
        }
        DeValue::Table(table) => Value::Table(convert_table(path, text, table)),
    };
    Node { value, place: Place::at(path, text, start) }
}
