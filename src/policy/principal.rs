//! Who is asking, and the file of static tokens that says so.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::{Node, Place, Problem, Problems, Table, Value};

/// Who is asking, as authentication found.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Principal {
    /// The id: the `principal` of the access log, and what a session belongs to.
    pub id: String,
    /// Anything else that is known, for plugins and templates.
    pub attributes: serde_json::Map<String, serde_json::Value>,
    /// The functions it may use; `None`: those of the configuration.
    pub functions: Option<Vec<String>>,
}

/// Longest id of a principal in bytes: it stands in cookies and log lines.
const LONGEST_ID: usize = 256;

impl Principal {
    /// Whether a text can be an id. The error is a sentence for whoever wrote it.
    pub(crate) fn check_id(id: &str) -> Result<(), &'static str> {
        match id {
            "" => Err("a principal's id must not be empty"),
            "-" => Err("a principal cannot be called `-`, which stands for nobody"),
            _ if id.len() > LONGEST_ID => Err("a principal's id has at most 256 bytes"),
            _ if id.chars().any(char::is_control) => Err("a principal's id has no control characters"),
            _ => Ok(()),
        }
    }
}

/// Static tokens, from a TOML file with a table for each principal.
#[derive(Default)]
pub struct Tokens {
    /// By the key of their token. What a lookup tells by its time is about a hash, which nobody can choose.
    entries: HashMap<Key, (Hash, Principal)>,
}

/// The SHA-256 of a token.
type Hash = [u8; 32];

/// The beginning of it.
type Key = [u8; 8];

impl Tokens {
    /// Reads the tables of a token file: `token` (or `token_sha256`), `functions`, and any attribute.
    pub(crate) fn read(table: &Table) -> Result<Tokens, Problems> {
        let mut problems = Problems::new();
        let mut entries: HashMap<Key, (Hash, Principal)> = HashMap::new();
        for entry in table.iter() {
            let Some(fields) = entry.node.as_table() else {
                let message = "expected a table: `[name]` with `token = \"…\"`";
                problems.push(Problem::new(entry.place.clone(), entry.key.clone(), message));
                continue;
            };
            let Some(read) = read_principal(&entry.key, &entry.place, fields, &mut problems) else {
                continue;
            };
            match entries.entry(Tokens::key_of(&read.0)) {
                Entry::Vacant(place) => drop(place.insert(read)),
                Entry::Occupied(_) => {
                    let message = "another principal of this file has the same token";
                    problems.push(Problem::new(entry.place.clone(), entry.key.clone(), message));
                }
            }
        }
        problems.into_result().map(|()| Tokens { entries })
    }

    /// The principal of a token. The time does not depend on how much of the token is right.
    pub fn find(&self, presented: &str) -> Option<&Principal> {
        let presented = hash_of(presented);
        let (hash, principal) = self.entries.get(&Tokens::key_of(&presented))?;
        bool::from(hash.ct_eq(&presented)).then_some(principal)
    }

    /// A name of a token that does not give it away: the beginning of its SHA-256, in hexadecimal digits.
    pub fn key(token: &str) -> String {
        format!("{:016x}", u64::from_be_bytes(Tokens::key_of(&hash_of(token))))
    }

    /// The principal whose token has this key.
    pub fn find_key(&self, key: &str) -> Option<&Principal> {
        let key = u64::from_str_radix(key, 16).ok().filter(|_| key.len() == 16)?;
        self.entries.get(&key.to_be_bytes()).map(|(_, it)| it)
    }

    fn key_of(hash: &Hash) -> Key {
        *hash.first_chunk().expect("a hash is longer than its key")
    }

    /// How many principals there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.entries.len())
    }
}

fn hash_of(token: &str) -> Hash {
    digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn read_principal(
    id: &str,
    place: &Place,
    fields: &Table,
    problems: &mut Problems,
) -> Option<(Hash, Principal)> {
    let mut principal = Principal { id: id.to_owned(), ..Principal::default() };
    let mut hash: Option<Hash> = None;
    // No message shows a value: it may be the token.
    let mut complain = |place: &Place, key: &str, message: &str| {
        problems.push(Problem::new(place.clone(), format!("{id}.{key}"), message));
    };
    if let Err(message) = Principal::check_id(id) {
        complain(place, "id", message);
    }
    if fields.get("token").is_some() && fields.get("token_sha256").is_some() {
        complain(place, "token", "`token` and `token_sha256` exclude each other; remove one");
    }
    for field in fields.iter() {
        let Node { value, place } = &field.node;
        match (field.key.as_str(), value) {
            ("token", Value::Text(token)) if token.len() >= 4 => {
                hash = Some(hash_of(token));
            }
            ("token", _) => complain(place, "token", "expected a string of at least 4 characters"),
            ("token_sha256", Value::Text(text)) if text.len() == 64 => {
                let mut bytes = [0; 32];
                let digits = (0..32)
                    .map(|it| text.get(it * 2..it * 2 + 2).and_then(|it| u8::from_str_radix(it, 16).ok()));
                for (byte, digit) in bytes.iter_mut().zip(digits) {
                    match digit {
                        Some(digit) => *byte = digit,
                        None => {
                            complain(place, "token_sha256", "expected 64 hexadecimal digits");
                            return None;
                        }
                    }
                }
                hash = Some(bytes);
            }
            ("token_sha256", _) => complain(place, "token_sha256", "expected 64 hexadecimal digits"),
            ("functions", Value::List(items)) => {
                let ids: Option<Vec<String>> = items
                    .iter()
                    .map(|it| match &it.value {
                        Value::Text(it) => Some(it.clone()),
                        _ => None,
                    })
                    .collect();
                match ids {
                    Some(ids) => principal.functions = Some(ids),
                    None => complain(place, "functions", "expected a list of function ids"),
                }
            }
            ("functions", _) => complain(place, "functions", "expected a list of function ids"),
            ("expires", value) => {
                let at = match value {
                    Value::Text(text) => OffsetDateTime::parse(text, &Rfc3339).ok(),
                    _ => None,
                };
                match at {
                    Some(at) => {
                        drop(principal.attributes.insert("expires".into(), at.unix_timestamp().into()))
                    }
                    None => complain(
                        place,
                        "expires",
                        "expected a date and time with its offset, such as 2027-01-31T00:00:00Z",
                    ),
                }
            }
            ("id", _) => complain(place, "id", "the name of the table is the principal's id"),
            (key, value) => {
                principal.attributes.insert(key.to_owned(), to_json(value));
            }
        }
    }
    if hash.is_none() && fields.get("token").is_none() && fields.get("token_sha256").is_none() {
        complain(place, "token", "missing: write `token = \"…\"` or `token_sha256 = \"…\"`");
    }
    Some((hash?, principal))
}

/// The JSON form of a written value.
pub(crate) fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(it) => it.as_str().into(),
        Value::Integer(it) => (*it).into(),
        Value::Float(it) => (*it).into(),
        Value::Boolean(it) => (*it).into(),
        Value::List(items) => items.iter().map(|it| to_json(&it.value)).collect(),
        Value::Table(table) => serde_json::Value::Object(
            table.iter().map(|it| (it.key.clone(), to_json(&it.node.value))).collect(),
        ),
    }
}
