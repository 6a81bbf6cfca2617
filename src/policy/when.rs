//! For which requests a plugin of a chain is asked.

use http::{HeaderName, Method};

use crate::policy::{Exchange, Pattern, readings};

/// Conditions, which must hold all; without any it is every request.
#[derive(Clone, Debug, Default)]
pub struct When {
    /// One of these methods.
    pub methods: Vec<Method>,
    /// A path of one of these patterns.
    pub paths: Vec<Pattern>,
    /// These headers with one of these values; no value means any.
    pub headers: Vec<(HeaderName, Vec<String>)>,
    /// These attributes of the principal with one of these values; no value means any. `id` is the principal's id.
    pub claims: Vec<(String, Vec<String>)>,
    /// What must not hold: of the request, or of its principal.
    pub not: Option<Box<When>>,
    /// What was written, for `check --explain`.
    pub written: String,
}

impl When {
    /// Whether it is every request.
    pub fn is_always(&self) -> bool {
        self.written.is_empty()
    }

    /// Whether what it says of the request is true.
    pub fn holds_for_request(&self, exchange: &Exchange) -> bool {
        self.methods.is_empty_or(|it| *it == exchange.method)
            && (self.paths.is_empty() || {
                // A path that can be read in two ways meets a condition when either reading does: a plugin that is
                // asked too often refuses too much, one that is not asked lets somebody in.
                let ways = readings(&exchange.path);
                self.paths.iter().any(|pattern| ways.iter().any(|it| pattern.matches(it)))
            })
            && self.headers.iter().all(|(name, values)| {
                let mut sent = exchange.headers.get_all(name).iter().peekable();
                sent.peek().is_some()
                    && values.is_empty_or_any(sent.map(|it| it.to_str().unwrap_or_default().to_owned()))
            })
            && self.not.as_ref().is_none_or(|it| it.has_claims() || !it.holds_for_request(exchange))
    }

    /// Whether what it says of the principal is true. Before `authenticate` nobody has any attributes.
    pub fn holds_for_principal(&self, exchange: &Exchange) -> bool {
        let holds = self.claims.iter().all(|(name, values)| {
            let Some(principal) = &exchange.principal else { return false };
            let claim = match name.as_str() {
                "id" => vec![principal.id.clone()],
                name => match principal.attributes.get(name) {
                    None | Some(serde_json::Value::Null) => return false,
                    Some(serde_json::Value::Array(items)) => items.iter().map(text).collect(),
                    Some(value) => vec![text(value)],
                },
            };
            values.is_empty_or_any(claim.into_iter())
        });
        holds && !self.not.as_ref().is_some_and(|it| it.has_claims() && it.holds_for_principal(exchange))
    }

    fn has_claims(&self) -> bool {
        !self.claims.is_empty()
    }
}

fn text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(it) => it.clone(),
        other => other.to_string(),
    }
}

trait Wanted<T> {
    fn is_empty_or(&self, meets: impl Fn(&T) -> bool) -> bool;
}

impl<T> Wanted<T> for Vec<T> {
    fn is_empty_or(&self, meets: impl Fn(&T) -> bool) -> bool {
        self.is_empty() || self.iter().any(meets)
    }
}

trait WantedTexts {
    fn is_empty_or_any(&self, values: impl Iterator<Item = String>) -> bool;
}

impl WantedTexts for Vec<String> {
    fn is_empty_or_any(&self, values: impl Iterator<Item = String>) -> bool {
        let mut values = values;
        self.is_empty() || values.any(|it| self.contains(&it))
    }
}
