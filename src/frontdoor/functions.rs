//! The functions API: create, list, get, delete; and deployments, which point a function version at running containers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::frontdoor::Shared;
use crate::frontdoor::faults;
use crate::frontdoor::health::{self, Health, Instance};
use crate::frontdoor::problem::{ApiError, Named, Whole, method_not_allowed};

/// All functions with their versions.
#[derive(Default)]
pub(crate) struct Functions(Mutex<BTreeMap<Uuid, Vec<Arc<Version>>>>);

/// A version of a function.
pub(crate) struct Version {
    pub(crate) function: Uuid,
    pub(crate) id: Uuid,
    /// The request that created it, which the answers repeat.
    definition: Map<String, Value>,
    created: String,
    pub(crate) is_streaming: bool,
    inference_port: u16,
    health: Health,
    deployment: Mutex<Option<Deployment>>,
}

struct Deployment {
    id: Uuid,
    created: String,
    specifications: Value,
    running: Vec<Running>,
    /// The status that all its sessions are refused with (F18), to see what a gateway makes of it.
    refuse: Option<StatusCode>,
}

/// A container, and who asks it whether it is ready.
struct Running {
    instance: Arc<Instance>,
    watch: tokio::task::JoinHandle<()>,
}

impl Running {
    fn new(instance: Instance, shared: &Arc<Shared>) -> Self {
        let instance = Arc::new(instance);
        let watch = tokio::spawn(health::watch(Arc::clone(&instance), Arc::clone(shared)));
        Running { instance, watch }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Fields that NVCF takes and that are repeated as they are.
const PASSED: [&str; 19] = [
    "apiBodyFormat",
    "containerArgs",
    "containerEnvironment",
    "containerImage",
    "description",
    "functionType",
    "health",
    "healthUri",
    "helmChart",
    "helmChartServiceName",
    "inferencePort",
    "inferenceUrl",
    "llmInvocationConfig",
    "models",
    "name",
    "rateLimit",
    "resources",
    "tags",
    "telemetries",
];

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v2/nvcf/functions", get(list).post(create))
        .route("/v2/nvcf/functions/ids", get(ids))
        .route("/v2/nvcf/functions/{id}/versions", get(versions).post(create_version))
        .route("/v2/nvcf/functions/{id}/versions/{version}", get(version).delete(delete_version))
        .route(
            "/v2/nvcf/deployments/functions/{id}/versions/{version}",
            post(deploy).put(deploy).get(deployment).delete(undeploy),
        )
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "No static resource.") })
        .with_state(Arc::clone(&shared))
        .merge(faults::router(shared))
        .method_not_allowed_fallback(method_not_allowed)
}

impl Functions {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Uuid, Vec<Arc<Version>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version that a session reaches: the one named, or any active one, or any.
    pub(crate) fn find(&self, function: Uuid, version: Option<Uuid>) -> Option<Arc<Version>> {
        let all = self.all();
        let versions = all.get(&function)?;
        match version {
            Some(version) => versions.iter().find(|it| it.id == version).cloned(),
            None => versions.iter().find(|it| it.status() == "ACTIVE").or(versions.last()).cloned(),
        }
    }

    /// Ends all deployments.
    pub(crate) fn clear(&self) {
        self.all().clear();
    }

    fn version(&self, function: Uuid, version: Uuid) -> Result<Arc<Version>, ApiError> {
        self.find(function, Some(version)).ok_or_else(|| ApiError::not_found("Function version", version))
    }
}

impl Version {
    fn deployment(&self) -> MutexGuard<'_, Option<Deployment>> {
        self.deployment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running containers.
    pub(crate) fn instances(&self) -> Vec<Arc<Instance>> {
        let deployment = self.deployment();
        let running = deployment.iter().flat_map(|it| &it.running);
        running.map(|it| Arc::clone(&it.instance)).collect()
    }

    /// Its deployment is over, and with it the sessions.
    fn undeploy(&self, shared: &Arc<Shared>) {
        let deployment = self.deployment().take();
        dismiss(shared, deployment.map_or(Vec::new(), |it| it.running));
    }

    /// The status that its sessions are refused with, if it was deployed to refuse them (F18).
    pub(crate) fn refuses(&self) -> Option<StatusCode> {
        self.deployment().as_ref()?.refuse
    }

    /// `INACTIVE` until it is deployed, `DEPLOYING` until a container is ready, then `ACTIVE` (F21).
    fn status(&self) -> &'static str {
        match &*self.deployment() {
            None => "INACTIVE",
            Some(it) if it.running.iter().any(|it| it.instance.is_healthy()) => "ACTIVE",
            Some(it) if it.running.iter().any(|it| it.instance.was_healthy()) => "ERROR",
            Some(_) => "DEPLOYING",
        }
    }

    fn to_json(&self) -> Value {
        let mut json = self.definition.clone();
        let instances: Vec<Value> = self.instances().iter().map(|it| it.to_json()).collect();
        for (key, value) in [
            ("id", json!(self.function)),
            ("versionId", json!(self.id)),
            ("ncaId", json!("local")),
            ("status", json!(self.status())),
            ("createdAt", json!(self.created)),
            ("activeInstances", json!(instances)),
        ] {
            json.insert(key.into(), value);
        }
        Value::Object(json)
    }

    fn deployment_json(&self) -> Result<Value, ApiError> {
        let status = self.status();
        let deployment = self.deployment();
        let it = deployment
            .as_ref()
            .ok_or_else(|| ApiError::not_found("Deployment of function version", self.id))?;
        Ok(json!({ "deployment": {
            "functionId": self.function,
            "functionVersionId": self.id,
            "deploymentId": it.id,
            "functionName": self.definition.get("name"),
            "ncaId": "local",
            "functionStatus": status,
            "deploymentSpecifications": it.specifications,
            "createdAt": it.created,
        }}))
    }
}

/// Ends the sessions at containers that their function has no more.
fn dismiss(shared: &Arc<Shared>, gone: Vec<Running>) {
    gone.iter().for_each(|it| it.instance.dismiss());
    shared.sessions.end_dismissed(shared);
}

type Answer = Result<Json<Value>, ApiError>;

async fn create(State(shared): State<Arc<Shared>>, Whole(body): Whole) -> Answer {
    add(&shared, Uuid::new_v4(), &body)
}

async fn create_version(
    State(shared): State<Arc<Shared>>,
    Named(function): Named<Uuid>,
    Whole(body): Whole,
) -> Answer {
    if !shared.functions.all().contains_key(&function) {
        return Err(ApiError::not_found("Function", function));
    }
    add(&shared, function, &body)
}

fn add(shared: &Shared, function: Uuid, body: &[u8]) -> Answer {
    let version = Arc::new(parse(function, body, now(shared))?);
    let json = version.to_json();
    shared.functions.all().entry(function).or_default().push(version);
    Ok(Json(json!({ "function": json })))
}

async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let functions: Vec<Value> = shared.functions.all().values().flatten().map(|it| it.to_json()).collect();
    Ok(Json(json!({ "functions": functions })))
}

async fn ids(State(shared): State<Arc<Shared>>) -> Answer {
    let ids: Vec<Uuid> = shared.functions.all().keys().copied().collect();
    Ok(Json(json!({ "functionIds": ids })))
}

async fn versions(State(shared): State<Arc<Shared>>, Named(function): Named<Uuid>) -> Answer {
    let all = shared.functions.all();
    let versions = all.get(&function).ok_or_else(|| ApiError::not_found("Function", function))?;
    Ok(Json(json!({ "functions": versions.iter().map(|it| it.to_json()).collect::<Vec<_>>() })))
}

async fn version(
    State(shared): State<Arc<Shared>>,
    Named((function, version)): Named<(Uuid, Uuid)>,
) -> Answer {
    Ok(Json(json!({ "function": shared.functions.version(function, version)?.to_json() })))
}

async fn delete_version(
    State(shared): State<Arc<Shared>>,
    Named((function, version)): Named<(Uuid, Uuid)>,
) -> Result<StatusCode, ApiError> {
    let found = shared.functions.version(function, version)?;
    {
        let mut all = shared.functions.all();
        if let Some(versions) = all.get_mut(&function) {
            versions.retain(|it| it.id != version);
            if versions.is_empty() {
                all.remove(&function);
            }
        }
    }
    found.undeploy(&shared);
    Ok(StatusCode::NO_CONTENT)
}

async fn deploy(
    State(shared): State<Arc<Shared>>,
    Named((function, version)): Named<(Uuid, Uuid)>,
    Whole(body): Whole,
) -> Answer {
    let version = shared.functions.version(function, version)?;
    let body = object(&body)?;
    let specifications = body.get("deploymentSpecifications").cloned().unwrap_or_else(|| json!([{}]));
    let Value::Array(items) = &specifications else {
        return Err(ApiError::bad("deploymentSpecifications: expected a list"));
    };
    // An extension of the stand-in as well.
    let refuse = match body.get("refuse").map(Value::as_u64) {
        None => None,
        Some(Some(403)) => Some(StatusCode::FORBIDDEN),
        Some(Some(429)) => Some(StatusCode::TOO_MANY_REQUESTS),
        Some(Some(503)) => Some(StatusCode::SERVICE_UNAVAILABLE),
        Some(_) => return Err(ApiError::bad("refuse: expected 403, 429 or 503")),
    };
    let mut described = Vec::new();
    for (idx, item) in items.iter().enumerate() {
        let at = |field: &str| format!("deploymentSpecifications[{idx}].{field}");
        let concurrency = match item.get("maxRequestConcurrency") {
            None => 1, // F26
            Some(it) => it.as_u64().filter(|it| (1..=100_000).contains(it)).ok_or_else(|| {
                ApiError::bad(format!("{}: expected a number from 1 to 100000", at("maxRequestConcurrency")))
            })?,
        };
        // The extension of the stand-in: where the containers run. NVCF starts them itself.
        let endpoints = match item.get("endpoints") {
            None => vec![json!({})],
            Some(Value::Array(it)) => it.clone(),
            Some(_) => return Err(ApiError::bad(format!("{}: expected a list", at("endpoints")))),
        };
        for endpoint in endpoints {
            let host = endpoint.get("host").map_or(Some("127.0.0.1"), Value::as_str);
            let host =
                host.ok_or_else(|| ApiError::bad(format!("{}: expected a string", at("endpoints.host"))))?;
            let port = |field: &str, default: u16| match endpoint.get(field) {
                None => Ok(default),
                Some(it) => port(it).ok_or_else(|| {
                    ApiError::bad(format!("{}: expected a port", at(&format!("endpoints.{field}"))))
                }),
            };
            let health = version.health.on_port(port("healthPort", version.health.port)?);
            let inference_port = port("inferencePort", version.inference_port)?;
            described.push(Instance::new(host, inference_port, health, concurrency as usize));
        }
    }
    let gone = {
        let mut deployment = version.deployment();
        let mut before = deployment.take().map_or(Vec::new(), |it| it.running);
        // A container that stays keeps its sessions, and they their places.
        let running = described.into_iter().map(|it| {
            let Some(idx) = before.iter().position(|old| old.instance.is_at(&it)) else {
                return Running::new(it, &shared);
            };
            let kept = before.swap_remove(idx);
            kept.instance.resize(&it);
            kept
        });
        let running = running.collect();
        *deployment =
            Some(Deployment { id: Uuid::new_v4(), created: now(&shared), specifications, running, refuse });
        before
    };
    dismiss(&shared, gone);
    version.deployment_json().map(Json)
}

async fn deployment(
    State(shared): State<Arc<Shared>>,
    Named((function, version)): Named<(Uuid, Uuid)>,
) -> Answer {
    shared.functions.version(function, version)?.deployment_json().map(Json)
}

async fn undeploy(
    State(shared): State<Arc<Shared>>,
    Named((function, version)): Named<(Uuid, Uuid)>,
) -> Answer {
    let version = shared.functions.version(function, version)?;
    version.deployment_json()?;
    version.undeploy(&shared);
    Ok(Json(json!({ "function": version.to_json() })))
}

/// Reads the definition of a function; all that is wrong with it is told at once.
fn parse(function: Uuid, body: &[u8], created: String) -> Result<Version, ApiError> {
    let body = object(body)?;
    let mut wrong = Vec::new();
    let text = |field: &str| body.get(field).and_then(Value::as_str);
    match text("name") {
        Some(name) if is_name(name) => {}
        Some(_) => wrong.push(
            "name: expected 1 to 128 letters, digits, '-' or '_', beginning with a letter or digit"
                .to_owned(),
        ),
        None => wrong.push("name: must not be blank".to_owned()),
    }
    if text("inferenceUrl").is_none_or(str::is_empty) {
        wrong.push("inferenceUrl: must not be blank".to_owned());
    }
    if !["containerImage", "models", "helmChart"].iter().any(|it| body.contains_key(*it)) {
        wrong.push("one of containerImage, models, helmChart is required".to_owned());
    }
    let kind = body.get("functionType").map_or(Some("DEFAULT"), Value::as_str).unwrap_or_default();
    if !["DEFAULT", "STREAMING", "LLM"].contains(&kind) {
        wrong.push("functionType: expected DEFAULT, STREAMING or LLM".to_owned());
    }
    let inference_port = body.get("inferencePort").map_or(Some(8000), port).unwrap_or_else(|| {
        wrong.push("inferencePort: expected a port".to_owned());
        0
    });
    let health = match body.get("health") {
        None => Health::default().on_port(inference_port),
        Some(it) => Health::parse(it).unwrap_or_else(|more| {
            wrong.extend(more);
            Health::default()
        }),
    };
    if !wrong.is_empty() {
        return Err(ApiError::bad(wrong.join("; ")));
    }
    let is_streaming = kind == "STREAMING";
    let definition = body.into_iter().filter(|(key, _)| PASSED.contains(&key.as_str())).collect();
    let deployment = Mutex::new(None);
    Ok(Version {
        function,
        id: Uuid::new_v4(),
        definition,
        created,
        is_streaming,
        inference_port,
        health,
        deployment,
    })
}

/// A body that is a JSON object; what is wrong with it is told by line and column.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::bad("Failed to read request: expected a JSON object")),
        Err(error) => Err(ApiError::bad(format!("Failed to read request: JSON parse error: {error}"))),
    }
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 128
        && bytes.next().is_some_and(|it| it.is_ascii_alphanumeric())
        && bytes.all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_')
}

pub(super) fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|it| u16::try_from(it).ok()).filter(|it| *it > 0)
}

fn now(shared: &Shared) -> String {
    OffsetDateTime::from(shared.clock.wall()).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of the seed's `curl`, as it is printed there: with one brace too many.
    const SEED: &str = r#"{
        "name": "my-stream",
        "inferenceUrl": "/sign_in",
        "inferencePort": 49100,
        "health": {
            "protocol": "HTTP",
            "uri": "/v1/streaming/ready",
            "port": 8011,
            "timeout": "PT10S",
            "expectedStatusCode": 200
        },
        "containerImage": "registry.example/stream:1",
        "apiBodyFormat": "CUSTOM",
        "description": "my-stream",
        "functionType": "STREAMING"
        }
    }"#;

    #[test]
    fn the_seeds_body_is_taken_once_its_stray_brace_is_gone() {
        let error = parse(Uuid::nil(), SEED.as_bytes(), String::new()).err().expect("it is not JSON");
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert!(error.detail.contains("line 17 column 5"), "{}", error.detail);

        let (body, _) = SEED.rsplit_once('}').expect("a brace");
        let version =
            parse(Uuid::nil(), body.as_bytes(), String::new()).map_err(|it| it.detail).expect("valid");
        assert!(version.is_streaming);
        assert_eq!((version.inference_port, version.health.port), (49100, 8011));
        assert_eq!(version.status(), "INACTIVE");
        assert_eq!(version.to_json()["inferenceUrl"], "/sign_in");
    }

    #[test]
    fn all_that_is_wrong_with_a_function_is_told_at_once() {
        let body =
            r#"{"name":"-x","inferencePort":"80","functionType":"VIDEO","health":{"uri":"ready","port":0}}"#;
        let error = parse(Uuid::nil(), body.as_bytes(), String::new()).err().expect("a mistake").detail;
        for part in [
            "name:",
            "inferenceUrl:",
            "containerImage",
            "functionType:",
            "inferencePort:",
            "health.protocol",
            "health.uri",
            "health.port",
            "health.timeout",
            "health.expectedStatusCode",
        ] {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
    }
}
