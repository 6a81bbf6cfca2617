//! The contract of a plugin: its phases, its settings, the codes it may reject with.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::config::{
    Entry, Node, Parse, Place, Problem, Problems, Reference, Size, Table, Value, did_you_mean, network,
};
use crate::policy::{OnError, Phases, Tokens, Wanted};
use crate::rejection::Declared;
use crate::secret::Secret;

/// What a plugin declares about itself.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    /// What it does, in a sentence.
    pub summary: String,
    /// When it wants to be asked.
    pub phases: Phases,
    /// Whether it finds out who is asking: not all do that are asked in `authenticate`.
    pub authenticates: bool,
    /// What becomes of a request when it fails, unless the chain says otherwise.
    pub on_error: OnError,
    /// Which messages it wants to see in `session_message`.
    pub messages: Wanted,
    /// Its settings.
    pub fields: Vec<Field>,
    /// The codes it may reject with, besides the gateway's own.
    pub rejections: Vec<Arc<Declared>>,
    /// Plugins that must come earlier in a chain that has them.
    pub after: Vec<String>,
}

/// One setting of a plugin.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its key.
    pub name: String,
    /// What may be written.
    pub kind: Kind,
    /// Whether it must be written.
    pub required: bool,
    /// What holds when it is not written.
    pub default: Option<Node>,
    /// A setting of the gateway that holds when it is not written.
    pub inherit: Option<String>,
    /// The least that may be written: a number, or the seconds or bytes of a duration or a size.
    pub min: Option<f64>,
    /// The most that may be written.
    pub max: Option<f64>,
    /// What it does.
    pub doc: String,
}

/// What may be written for a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// One of a few strings.
    Choice(Vec<String>),
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// `30s`; a plugin gets it in seconds.
    Duration,
    /// `64KiB`; a plugin gets it in bytes.
    Size,
    /// A list of one kind.
    List(Box<Kind>),
    /// A table from names to one kind.
    Map(Box<Kind>),
    /// `env:NAME` or `file:PATH`.
    Secret,
    /// `file:PATH` of a token file.
    TokenFile,
    /// An absolute `http` or `https` URL, whose host the plugin may reach.
    Url,
    /// A header's name.
    Header,
    /// An address or a network.
    Cidr,
}

/// A checked value.
#[derive(Clone, Debug)]
pub enum Setting {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number; also a duration in seconds.
    Number(f64),
    /// True or false.
    Boolean(bool),
    /// A list.
    List(Vec<Setting>),
    /// A table, in the order in which it was written.
    Map(Vec<(String, Setting)>),
    /// A secret.
    Secret(Secret),
    /// The principals of a token file.
    Tokens(Arc<Tokens>),
    /// A URL.
    Url(String),
}

/// All settings of one instance of a plugin.
#[derive(Clone, Debug, Default)]
pub struct Settings(Vec<(String, Setting)>);

/// Fetches what a setting refers to, so that the check itself does no I/O.
pub trait References {
    /// The secret behind a reference; the error is a sentence for the operator and never the secret.
    fn secret(&self, reference: &Reference) -> Result<Secret, String>;

    /// The table in a TOML file; a file that cannot be read is a mistake of the setting at this place.
    fn table(&self, path: &Path, setting: &Place) -> Result<Table, Problems>;

    /// A setting of the gateway that plugins may inherit.
    fn inherited(&self, name: &str) -> Option<Setting>;
}

/// For what can refer to nothing.
struct NoReferences;

impl References for NoReferences {
    fn secret(&self, _: &Reference) -> Result<Secret, String> {
        Err("there are no secrets here".into())
    }

    fn table(&self, path: &Path, setting: &Place) -> Result<Table, Problems> {
        Err(Problem::new(setting.clone(), path.display().to_string(), "there are no files here").into())
    }

    fn inherited(&self, _: &str) -> Option<Setting> {
        None
    }
}

impl Schema {
    /// Checks what was written for one instance, and fills in the defaults.
    pub(crate) fn check(
        &self,
        place: &Place,
        written: &[Entry],
        from: &dyn References,
    ) -> Result<Settings, Problems> {
        let mut problems = Problems::new();
        let mut settings = Vec::new();
        for entry in written {
            if !self.fields.iter().any(|it| it.name == entry.key) {
                let names: Vec<&str> = self.fields.iter().map(|it| it.name.as_str()).collect();
                let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                let has = format!("this plugin has {has}");
                let message =
                    format!("unknown setting;{}", did_you_mean(&entry.key, names.iter().copied(), &has));
                problems.push(Problem::new(entry.place.clone(), entry.key.clone(), message));
            }
        }
        for field in &self.fields {
            let written = written.iter().find(|it| it.key == field.name).map(|it| &it.node);
            match (written.or(field.default.as_ref()), &field.inherit) {
                (Some(node), _) => match field.kind.read(&field.name, node, from) {
                    Ok(value) => match field.out_of_range(&value) {
                        None => settings.push((field.name.clone(), value)),
                        Some(message) => {
                            let subject = format!("{} = {}", field.name, node.value.shown());
                            problems.push(Problem::new(node.place.clone(), subject, message));
                        }
                    },
                    Err(more) => problems.extend(more),
                },
                (None, Some(inherit)) => {
                    if let Some(value) = from.inherited(inherit) {
                        settings.push((field.name.clone(), value));
                    }
                }
                (None, None) if field.required => {
                    let message = format!("missing: {}", field.doc);
                    problems.push(Problem::new(place.clone(), field.name.clone(), message));
                }
                (None, None) => {}
            }
        }
        problems.into_result().map(|()| Settings(settings))
    }
}

impl Field {
    /// A setting that may be left out and has no default.
    pub fn new(name: &str, kind: Kind, doc: &str) -> Field {
        Field {
            name: name.to_owned(),
            kind,
            required: false,
            default: None,
            inherit: None,
            min: None,
            max: None,
            doc: doc.to_owned(),
        }
    }

    /// What is wrong with its bounds, or with a default of the right kind that nobody could write.
    pub(crate) fn out_of_its_range(&self) -> Option<String> {
        if let (Some(min), Some(max)) = (self.min, self.max)
            && min > max
        {
            return Some(format!("`min` is {min}, `max` is {max}: nothing lies between"));
        }
        let node = self.default.as_ref()?;
        let value = self.kind.read(&self.name, node, &NoReferences).ok()?;
        let message = self.out_of_range(&value)?;
        Some(format!("default is {}: {message}", node.value.written()))
    }

    /// What is wrong with a value that is too small or too large.
    fn out_of_range(&self, value: &Setting) -> Option<String> {
        let number = match value {
            Setting::Integer(it) => *it as f64,
            Setting::Number(it) => *it,
            _ => return None,
        };
        let unit = match self.kind {
            Kind::Duration => " seconds",
            Kind::Size => " bytes",
            _ => "",
        };
        match (self.min.filter(|it| number < *it), self.max.filter(|it| number > *it)) {
            (Some(min), _) => Some(format!("expected at least {min}{unit}")),
            (_, Some(max)) => Some(format!("expected at most {max}{unit}")),
            _ => None,
        }
    }
}

impl Settings {
    /// One setting.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// All settings, in the order of the schema.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

impl Kind {
    /// What a schema may say for a type.
    pub(crate) const NAMES: [&str; 13] = [
        "string",
        "integer",
        "number",
        "boolean",
        "duration",
        "size",
        "list",
        "map",
        "secret",
        "token-file",
        "url",
        "header",
        "cidr",
    ];

    /// The kind that a schema names, `of` being what a list or a map is made of.
    pub(crate) fn find(name: &str, of: Option<Kind>, choices: Vec<String>) -> Option<Kind> {
        Some(match name {
            "string" if !choices.is_empty() => Kind::Choice(choices),
            "string" => Kind::Text,
            "integer" => Kind::Integer,
            "number" => Kind::Number,
            "boolean" => Kind::Boolean,
            "duration" => Kind::Duration,
            "size" => Kind::Size,
            "list" => Kind::List(Box::new(of.unwrap_or(Kind::Text))),
            "map" => Kind::Map(Box::new(of.unwrap_or(Kind::Text))),
            "secret" => Kind::Secret,
            "token-file" => Kind::TokenFile,
            "url" => Kind::Url,
            "header" => Kind::Header,
            "cidr" => Kind::Cidr,
            _ => return None,
        })
    }

    /// What may be written, in the reader's words.
    pub fn name(&self) -> String {
        match self {
            Kind::Text => "string".into(),
            Kind::Choice(choices) => {
                choices.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", ")
            }
            Kind::Integer => "whole number".into(),
            Kind::Number => "number".into(),
            Kind::Boolean => "boolean".into(),
            Kind::Duration => "duration".into(),
            Kind::Size => "size".into(),
            Kind::List(of) => format!("list of {}", of.plural()),
            Kind::Map(of) => format!("map to {}", of.plural()),
            Kind::Secret => "secret".into(),
            Kind::TokenFile => "token file".into(),
            Kind::Url => "URL".into(),
            Kind::Header => "header name".into(),
            Kind::Cidr => "address or network".into(),
        }
    }

    /// The name of many of it.
    fn plural(&self) -> String {
        match self {
            Kind::Choice(_) => self.name(),
            Kind::List(of) => format!("lists of {}", of.plural()),
            Kind::Map(of) => format!("maps to {}", of.plural()),
            Kind::Cidr => "addresses or networks".into(),
            it => format!("{}s", it.name()),
        }
    }

    /// Whether a schema's default can be; the error is the kind's name.
    pub(crate) fn check_default(&self, default: &Node) -> Result<(), String> {
        let fits = match (self, &default.value) {
            (Kind::Text, Value::Text(_))
            | (Kind::Integer, Value::Integer(_))
            | (Kind::Boolean, Value::Boolean(_)) => true,
            (Kind::Number, Value::Integer(_) | Value::Float(_)) => true,
            (Kind::Choice(choices), Value::Text(it)) => choices.contains(it),
            (Kind::Url, Value::Text(it)) => url(it).is_ok(),
            (Kind::Header, Value::Text(it)) => HeaderName::from_bytes(it.as_bytes()).is_ok(),
            (Kind::Cidr, Value::Text(it)) => network(it).is_some(),
            (Kind::Duration, value) => Duration::parse(value).is_ok(),
            (Kind::Size, value) => Size::parse(value).is_ok(),
            (Kind::List(of), Value::List(items)) => items.iter().all(|it| of.check_default(it).is_ok()),
            (Kind::List(_), Value::Table(table)) => table.iter().next().is_none(), // an empty list looks like this in Lua
            (Kind::Map(of), Value::Table(table)) => table.iter().all(|it| of.check_default(&it.node).is_ok()),
            _ => false,
        };
        if fits { Ok(()) } else { Err(self.name()) }
    }

    fn read(&self, name: &str, node: &Node, from: &dyn References) -> Result<Setting, Problems> {
        let value = &node.value;
        let fail = |message: String| {
            let hidden = matches!(self, Kind::Secret | Kind::TokenFile);
            let subject = if hidden { name.to_owned() } else { format!("{name} = {}", value.shown()) };
            Problems::from(Problem::new(node.place.clone(), subject, message))
        };
        Ok(match (self, value) {
            (Kind::Text, Value::Text(it)) => Setting::Text(it.clone()),
            (Kind::Choice(choices), Value::Text(it)) if choices.contains(it) => Setting::Text(it.clone()),
            (Kind::Choice(_), _) => return Err(fail(format!("expected one of {}", self.name()))),
            (Kind::Integer, Value::Integer(it)) => Setting::Integer(*it),
            (Kind::Number, Value::Integer(it)) => Setting::Number(*it as f64),
            (Kind::Number, Value::Float(it)) => Setting::Number(*it),
            (Kind::Boolean, Value::Boolean(it)) => Setting::Boolean(*it),
            (Kind::Url, Value::Text(it)) => {
                url(it).map_err(fail)?;
                Setting::Url(it.clone())
            }
            (Kind::Header, Value::Text(it)) => match HeaderName::from_bytes(it.as_bytes()) {
                Ok(name) => Setting::Text(name.as_str().to_owned()),
                Err(_) => return Err(fail("not a header's name".into())),
            },
            (Kind::Cidr, Value::Text(it)) if network(it).is_some() => Setting::Text(it.clone()),
            (Kind::Cidr, Value::Text(_)) => {
                return Err(fail("neither an address nor a network, such as \"10.0.0.0/8\"".into()));
            }
            (Kind::Duration, value) => Setting::Number(Duration::parse(value).map_err(fail)?.as_secs_f64()),
            (Kind::Size, value) => {
                Setting::Integer(i64::try_from(Size::parse(value).map_err(fail)?.0).unwrap_or(i64::MAX))
            }
            (Kind::List(of), Value::List(items)) => {
                let items = items.iter().enumerate();
                Setting::List(gather(
                    items.map(|(idx, it)| of.read(&format!("{name}[{}]", idx + 1), it, from)),
                )?)
            }
            (Kind::List(_), Value::Table(table)) if table.iter().next().is_none() => {
                Setting::List(Vec::new())
            }
            (Kind::Map(of), Value::Table(table)) => Setting::Map(gather(table.iter().map(|it| {
                let value = of.read(&format!("{name}.{}", it.key), &it.node, from)?;
                Ok((it.key.clone(), value))
            }))?),
            (Kind::Secret, value) => {
                let reference = Reference::parse(value).map_err(fail)?;
                Setting::Secret(from.secret(&reference).map_err(fail)?)
            }
            (Kind::TokenFile, value) => match Reference::parse(value) {
                Ok(Reference::File(path)) => {
                    Setting::Tokens(Arc::new(Tokens::read(&from.table(&path, &node.place)?)?))
                }
                _ => return Err(fail("expected the path of a token file, as \"file:PATH\"".into())),
            },
            (kind, value) => {
                let name = kind.name();
                let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
                return Err(fail(format!("expected {article} {name}, not {}", value.kind())));
            }
        })
    }
}

/// Checks a URL that a plugin may reach.
fn url(text: &str) -> Result<(), String> {
    let parsed = url::Url::parse(text).map_err(|it| format!("not a URL: {it}"))?;
    if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
        return Err("expected a URL that begins with `https://` or `http://` and a host".into());
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("a URL has no user name and no password; give them by settings of their own".into());
    }
    Ok(())
}

/// All values, or the problems of all.
fn gather<T>(results: impl Iterator<Item = Result<T, Problems>>) -> Result<Vec<T>, Problems> {
    let mut values = Vec::new();
    let mut problems = Problems::new();
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(more) => problems.extend(more),
        }
    }
    problems.into_result().map(|()| values)
}
