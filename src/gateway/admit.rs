//! What a request and a WebSocket have in common: the exchange is made, policies are asked, the upstream's headers
//! are written.

use http::header::{AUTHORIZATION, HOST, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::{self, Resume, ResumeMode};
use crate::gateway::Shared;
use crate::gateway::cookie::Ticket;
use crate::gateway::directory::{Directory, Found, SessionId};
use crate::gateway::head::RequestHead;
use crate::gateway::worker::Worker;
use crate::policy::{Chain, Exchange, Function, Offer, Phase, RESUME_TOKEN, Stop};
use crate::rejection::{Code, Rejection};

const FUNCTION_ID: HeaderName = HeaderName::from_static("function-id");
const NVCF_FUNCTION_ID: HeaderName = HeaderName::from_static("nvcf-function-id");
const FUNCTION_VERSION_ID: HeaderName = HeaderName::from_static("function-version-id");
const NVCF_REQID: HeaderName = HeaderName::from_static("nvcf-reqid");

/// How long NVCF holds a session whose connection is gone.
const RECONNECT_WINDOW: HeaderName = HeaderName::from_static("x-nvcf-reconnect-window-secs");

/// NVCF holds none for longer, whatever it is told.
const LONGEST_WINDOW: u64 = 1800;

/// NVCF's cookie with the id of the session. It stays inside.
pub(crate) const NVCF_COOKIE: &str = "nvcf-request-id";

/// The end of a signalling path. Whatever stands before it is the gateway's side of the path.
pub(crate) const SIGN_IN: &str = "/sign_in";

/// A request whose head was read, as plugins see it.
pub(crate) fn exchange(
    worker: &Worker,
    client: std::net::SocketAddr,
    head: RequestHead,
    websocket: bool,
) -> Exchange {
    let RequestHead { method, path, query, headers, .. } = head;
    Exchange {
        id: request_id(),
        client,
        tls: worker.shared.is_tls(),
        websocket,
        method,
        path,
        query,
        // A malformed offer is refused where it matters; here it offers nothing.
        offer: Offer::parse(&headers).unwrap_or_default(),
        headers,
        ..Exchange::default()
    }
}

/// An id for a request. It identifies, it does not authorise.
pub(crate) fn request_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Asks the plugins up to `select`, and chooses the function.
pub(crate) async fn admit(worker: &Worker, chain: &Chain, exchange: &mut Exchange) -> Result<Function, Stop> {
    for phase in [Phase::OnRequest, Phase::Authenticate, Phase::Authorize, Phase::Select] {
        chain.run(phase, exchange, &worker.watch).await?;
    }
    worker.shared.functions.choose(exchange).map_err(|code| Stop::Reject(code.into()))
}

/// What the browser's cookie says of its session.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) session: SessionId,
    pub(crate) generation: u32,
    /// When the session began, in seconds since the Unix epoch.
    pub(crate) began: u64,
    /// Its id was made for this request, so that nobody can have a session with it.
    pub(crate) is_new: bool,
}

/// The session that the browser's cookie brings back: its own, with this function. One that was forged, has expired or is
/// another's counts as none, and is counted.
pub(crate) fn ticket(
    shared: &Shared,
    resume: &Resume,
    exchange: &Exchange,
    function: &Function,
) -> Option<Ticket> {
    let value = exchange.cookie(shared.sealer.name()).filter(|it| !it.is_empty())?;
    if resume.mode == ResumeMode::Off {
        return None;
    }
    let ticket = shared.sealer.open(value, shared.clock.unix());
    let own = ticket.filter(|it| it.principal == exchange.principal_id() && it.function == function.id);
    if own.is_none() {
        shared.metrics.resume("unknown", "invalid");
    }
    own
}

impl Seat {
    /// A session that begins now.
    pub(crate) fn new(now: u64) -> Self {
        Seat { session: SessionId::random(), generation: 0, began: now, is_new: true }
    }

    /// The session that the browser names by a token of its own, or by its cookie; else a new one, as where nobody comes
    /// back into any.
    pub(crate) fn of(
        exchange: &Exchange,
        resume: &Resume,
        function: &Function,
        ticket: Option<&Ticket>,
        now: u64,
    ) -> Self {
        if resume.mode == ResumeMode::Off {
            return Seat::new(now);
        }
        let in_query = parameters(exchange).filter_map(|it| it.strip_prefix(RESUME_PARAMETER));
        let mut tokens = exchange.offer.values(RESUME_TOKEN).chain(in_query);
        let named = tokens
            .find(|it| it.len() >= SHORTEST_TOKEN)
            .map(|it| SessionId::of_token(exchange.principal_id(), &function.id, it));
        match ticket {
            Some(it) if named.is_none_or(|id| id == it.session) => {
                Seat { session: it.session, generation: it.generation, began: it.began, is_new: false }
            }
            _ => match named {
                Some(session) => Seat { session, generation: 0, began: now, is_new: false },
                None => Seat::new(now),
            },
        }
    }
}

/// What is there of the session that a browser comes back into.
pub(crate) struct Earlier {
    /// The session of its seat.
    pub(crate) found: Option<Found>,
    /// What its cookie says of the session that it goes on with.
    pub(crate) ticket: Option<Ticket>,
    /// That session, where it is not the one of its seat.
    pub(crate) other: Option<Found>,
    /// The cookie is that of a browser that has come back twice since: whoever shows it is somebody else.
    pub(crate) is_replayed: bool,
}

impl Earlier {
    /// Looks for it. The cookie is that of all pages of a browser, the token a page's own: where the page's own session is
    /// there, or another page is in that of the cookie, the cookie says nothing.
    pub(crate) async fn seek(directory: &Directory, seat: &Seat, ticket: Option<Ticket>) -> Earlier {
        let found = if seat.is_new { None } else { directory.seek(seat.session).await };
        let (ticket, other) = match ticket {
            Some(it) if it.session != seat.session && found.is_some() => (None, None),
            Some(it) if it.session != seat.session => match directory.seek(it.session).await {
                Some(other) if other.is_attached() => (None, None),
                other => (Some(it), other),
            },
            ticket => (ticket, None),
        };
        let generations = ticket.as_ref().zip(found.as_ref());
        let is_replayed = generations.is_some_and(|(it, found)| it.generation + 1 < found.generation());
        Earlier { found, ticket, other, is_replayed }
    }
}

/// The parameter of a query that names a browser's session like an entry with [`RESUME_TOKEN`]. It is not passed on.
const RESUME_PARAMETER: &str = "streamgate-resume=";

fn parameters(exchange: &Exchange) -> impl Iterator<Item = &str> {
    exchange.query.iter().flat_map(|it| it.split('&'))
}

/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// The headers that go upstream: the browser's without what it may not say, then the plugins' changes, then ours.
pub(crate) async fn upstream_headers(
    worker: &Worker,
    chain: &Chain,
    exchange: &mut Exchange,
    seat: &Seat,
) -> Result<(), Stop> {
    exchange.session.id = Some(seat.session.public_name());
    exchange.begin_upstream();
    chain.run(Phase::UpstreamRequest, exchange, &worker.watch).await
}

/// Sets what NVCF wants to see. `resume` says how long it is to hold the session, `ticket` is the one to come back into.
pub(crate) fn sign(
    shared: &Shared,
    resume: Option<&Resume>,
    headers: &mut HeaderMap,
    function: &Function,
    ticket: Option<&Ticket>,
) -> Result<(), Rejection> {
    let value = |text: &str| HeaderValue::from_str(text).map_err(|it| Rejection::because(Code::Internal, it));
    let function_id = match &shared.credentials.function {
        usual if usual == &function.id => usual.clone(),
        _ => value(&function.id)?,
    };
    headers.insert(HOST, shared.credentials.host.clone());
    headers.insert(AUTHORIZATION, shared.credentials.key.clone());
    headers.insert(FUNCTION_ID, function_id.clone());
    headers.insert(NVCF_FUNCTION_ID, function_id);
    headers.remove(FUNCTION_VERSION_ID);
    if let Some(version) = &function.version {
        headers.insert(FUNCTION_VERSION_ID, value(version)?);
    }
    headers.remove(NVCF_REQID);
    if let Some(ticket) = ticket.filter(|it| !it.request.is_empty()) {
        headers.insert(NVCF_REQID, value(&ticket.request)?);
    }
    headers.remove(RECONNECT_WINDOW);
    if let Some(resume) = resume.filter(|it| it.mode != ResumeMode::Off) {
        let window = window(resume);
        let made = shared.credentials.windows.iter().find(|it| it.0 == window);
        let value = made.map_or_else(|| HeaderValue::from(window), |it| it.1.clone());
        headers.insert(RECONNECT_WINDOW, value);
    }
    Ok(())
}

/// How long NVCF is asked to hold a session, in seconds.
fn window(resume: &Resume) -> u64 {
    resume.window.as_secs().clamp(1, LONGEST_WINDOW)
}

/// The headers that are the same for all requests, or for many.
pub(crate) struct Credentials {
    host: HeaderValue,
    key: HeaderValue,
    /// The function that most requests reach.
    function: HeaderValue,
    /// Seconds, as the routes have them, and as text.
    windows: Vec<(u64, HeaderValue)>,
}

impl Credentials {
    pub(crate) fn new(config: &config::Gateway) -> Result<Credentials, config::Problem> {
        let value = |setting: &str, text: &str| {
            HeaderValue::from_str(text).map_err(|_| {
                let message = "has characters that no header may have";
                config::Problem::new(config::Place::Nowhere, setting, message)
            })
        };
        let upstream = &config.upstream;
        let mut key = value("upstream.api_key", &format!("Bearer {}", upstream.api_key.expose()))?;
        key.set_sensitive(true);
        let function = value("upstream.function_id", &upstream.function_id)?;
        let host = value("upstream.server", &upstream.server.authority())?;
        let mut windows: Vec<u64> = config.parts.routes.iter().map(|it| window(&it.resume)).collect();
        windows.sort_unstable();
        windows.dedup();
        let windows = windows.into_iter().map(|it| (it, HeaderValue::from(it))).collect();
        Ok(Credentials { host, key, function, windows })
    }
}

/// The request target upstream: any prefix before `/sign_in` is the gateway's own; the query passes as it is, without a
/// token that is the gateway's.
pub(crate) fn target(exchange: &Exchange) -> String {
    let path = if exchange.path.ends_with(SIGN_IN) { SIGN_IN } else { exchange.path.as_str() };
    let is_ours = |it: &&str| it.starts_with(RESUME_PARAMETER);
    match &exchange.query {
        Some(_) if parameters(exchange).any(|it| is_ours(&it)) => {
            let others: Vec<&str> = parameters(exchange).filter(|it| !is_ours(it)).collect();
            if others.is_empty() { path.to_owned() } else { format!("{path}?{}", others.join("&")) }
        }
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// Takes NVCF's id out of an upstream's answer; gives it, or that NVCF has forgotten the session. An app's cookies stay.
pub(crate) fn take_session(headers: &mut HeaderMap) -> (Option<String>, bool) {
    let header = headers.remove(NVCF_REQID).and_then(|it| it.to_str().ok().map(str::to_owned));
    let mut from_cookie = None;
    let mut forgets = false;
    let mut is_named = false;
    let others: Vec<HeaderValue> = headers
        .get_all(SET_COOKIE)
        .iter()
        .filter(|it| {
            let Some(id) = nvcf_cookie(it) else { return true };
            if id.is_empty() {
                forgets = true;
            } else if id.iter().all(u8::is_ascii_graphic) {
                from_cookie = Some(String::from_utf8_lossy(id).into_owned());
            }
            is_named = true;
            false
        })
        .cloned()
        .collect();
    if is_named {
        headers.remove(SET_COOKIE);
        for cookie in others {
            headers.append(SET_COOKIE, cookie);
        }
    }
    (header.or(from_cookie).filter(|it| !it.is_empty() && it.len() <= 128), forgets)
}

/// The id that a `Set-Cookie` names, if it is NVCF's. Browsers read its name in more ways than NVCF writes it.
fn nvcf_cookie(line: &HeaderValue) -> Option<&[u8]> {
    let pair = line.as_bytes().split(|it| *it == b';').next()?;
    let (name, id) = pair.split_at(pair.iter().position(|it| *it == b'=')?);
    name.trim_ascii().eq_ignore_ascii_case(NVCF_COOKIE.as_bytes()).then(|| id[1..].trim_ascii())
}

/// Gives the cookie that brings the browser back into its session, whose name at NVCF is `request`.
pub(crate) fn give_cookie(
    shared: &Shared,
    exchange: &Exchange,
    function: &Function,
    seat: &Seat,
    request: &str,
    headers: &mut HeaderMap,
) {
    let ticket = Ticket {
        session: seat.session,
        generation: seat.generation,
        began: seat.began,
        request: request.to_owned(),
        principal: exchange.principal_id().to_owned(),
        function: function.id.clone(),
        expires: shared.sealer.expiry(shared.clock.unix()),
    };
    set_cookie(headers, &shared.sealer.set(&ticket, &exchange.path, exchange.tls));
}

/// Takes that cookie away.
pub(crate) fn take_cookie(shared: &Shared, exchange: &Exchange, headers: &mut HeaderMap) {
    set_cookie(headers, &shared.sealer.clear(&exchange.path, exchange.tls));
}

/// The same for an answer over plain HTTP, which names a session or takes one away.
pub(crate) fn keep_session(
    shared: &Shared,
    resume: &Resume,
    exchange: &Exchange,
    function: &Function,
    seat: &Seat,
    headers: &mut HeaderMap,
) {
    let (request, forgets) = take_session(headers);
    match request {
        Some(request) if resume.mode != ResumeMode::Off => {
            give_cookie(shared, exchange, function, seat, &request, headers);
        }
        _ if forgets => take_cookie(shared, exchange, headers),
        _ => {}
    }
}

fn set_cookie(headers: &mut HeaderMap, cookie: &str) {
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        headers.append(SET_COOKIE, cookie);
    }
}
