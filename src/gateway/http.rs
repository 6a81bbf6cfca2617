//! Plain HTTP: policies are asked here, Pingora's proxy carries the request.

use std::any::Any;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::apps::HttpServerApp;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, Session};
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use send_wrapper::SendWrapper;

use crate::config::Pool;
use crate::gateway::admit::{self, Seat};
use crate::gateway::conn::Conn;
use crate::gateway::head::{self, RequestHead};
use crate::gateway::upstream::DialError;
use crate::gateway::worker::Worker;
use crate::gateway::{Shared, respond};
use crate::lua::RouteChain;
use crate::policy::{Exchange, Function, LocalResponse, Phase, Stop};
use crate::rejection::{Code, Rejection};

/// Pingora's proxy, with our hooks.
pub(crate) type Proxy = HttpProxy<Hooks>;

/// The hooks. All they need is in the [`Prepared`] request.
pub(crate) struct Hooks;

/// A request that policies have let through.
pub(crate) struct Prepared {
    /// A worker's own things stay on its thread, and so does the request that carries them.
    local: SendWrapper<Local>,
    exchange: Exchange,
    function: Function,
    seat: Seat,
    /// The upstream's addresses that have not been tried yet, the next one last.
    peers: Vec<HttpPeer>,
    started: Instant,
}

struct Local {
    worker: Rc<Worker>,
    route: RouteChain,
}

/// Addresses of the upstream that are tried.
const MOST_TRIES: usize = 4;

/// Time between two pieces of a body, from or to a browser.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long an upstream connection waits for its next request, where it may be reused.
const POOLED: Duration = Duration::from_secs(55);

/// The proxy of one worker. It has its own connections upstream.
pub(crate) fn proxy(shared: &Arc<Shared>) -> Arc<Proxy> {
    let parts = &shared.config.parts;
    let conf = ServerConf {
        threads: 1,
        // A request is sent once. Only a connection that was not made, or a pooled one that turns out to be closed, is
        // worth another try.
        max_retries: MOST_TRIES,
        upstream_keepalive_pool_size: 128,
        ca_file: parts.upstream_ca.as_ref().map(|it| it.display().to_string()),
        ..ServerConf::default()
    };
    Arc::new(pingora::proxy::http_proxy(&Arc::new(conf), Hooks))
}

/// Serves one request; gives the connection back when another may follow.
#[allow(clippy::too_many_arguments)] // what a connection knows at this point, used once
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    mut conn: Conn,
    mut rest: BytesMut,
    head: RequestHead,
    mut exchange: Exchange,
    route: RouteChain,
    key: u64,
    started: Instant,
) -> Option<(Conn, BytesMut)> {
    let keep_alive = head.keeps_alive();
    let prepared = tokio::select! {
        biased;
        prepared = prepare(worker, &head, &mut exchange, &route, key) => prepared,
        () = conn.gone(&mut rest) => {
            tracing::debug!(request = %exchange.id, "The browser left before it was answered.");
            worker.browser_gone(&mut exchange);
            worker.finish_request(&mut exchange, &route.chain, 0, 0, started);
            return None;
        }
    };
    let (headers, function, seat, peers) = match prepared {
        Ok(it) => it,
        Err(stop) => {
            let response = match stop {
                Stop::Reject(rejection) => respond::reject(worker.rejected(rejection), &mut exchange),
                Stop::Respond(response) => *response,
            };
            let keep_alive = keep_alive && !head.has_body();
            let conn =
                worker.answer(conn, response, Some(&route), &mut exchange, keep_alive, started).await?;
            return Some((conn, rest));
        }
    };
    // Pingora reads the head again: the one that was judged, with what goes upstream.
    let mut prefix = head::write_request(&head.method, &admit::target(&exchange), head.minor, &headers);
    prefix.extend_from_slice(&rest);
    conn.begin_response();
    let mut session = HttpSession::new(Box::new(conn));
    session.set_server_keepalive(
        keep_alive.then_some(worker.shared.config.listen.idle_timeout.as_secs().max(1)),
    );
    session.set_read_timeout(Some(BODY_TIMEOUT));
    session.set_write_timeout(Some(BODY_TIMEOUT));
    session.set_pipelined_prefix(prefix);
    let local = SendWrapper::new(Local { worker: Rc::clone(worker), route });
    let prepared: Box<dyn Any + Send + Sync> =
        Box::new(Prepared { local, exchange, function, seat, peers, started });
    session.set_connection_user_context(Some(prepared));
    let reused = worker.proxy.process_new_http(ServerSession::H1(session), &worker.shared.draining).await?;
    let (stream, _) = reused.consume();
    let conn = stream.into_any().downcast::<Conn>().ok()?;
    Some((*conn, BytesMut::new()))
}

/// Asks the policies; gives the head that goes upstream, and where it goes.
async fn prepare(
    worker: &Rc<Worker>,
    head: &RequestHead,
    exchange: &mut Exchange,
    route: &RouteChain,
    key: u64,
) -> Result<(HeaderMap, Function, Seat, Vec<HttpPeer>), Stop> {
    let shared = &worker.shared;
    let function = admit::admit(worker, &route.chain, exchange).await?;
    exchange.function = Some(function.id.clone());
    let ticket = admit::ticket(shared, &route.resume, exchange, &function);
    let seat = Seat::of(exchange, &function, ticket.as_ref(), shared.clock.unix());
    admit::upstream_headers(worker, &route.chain, exchange, &seat).await?;
    let mut headers = std::mem::take(&mut exchange.upstream);
    admit::sign(shared, &route.resume, &mut headers, &function, ticket.as_ref()).map_err(Stop::Reject)?;
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING] {
        match head.headers.get(&name) {
            Some(value) => drop(headers.insert(name, value.clone())),
            None => drop(headers.remove(name)),
        }
    }
    let connection = if head.keeps_alive() { "keep-alive" } else { "close" };
    headers.insert(CONNECTION, HeaderValue::from_static(connection));
    let peers = peers(shared, key).await.map_err(|error| Stop::Reject(respond::rescue_dial(&error)))?;
    Ok((headers, function, seat, peers))
}

/// The upstream's addresses, the first one last, and with whom a connection may be shared.
async fn peers(shared: &Shared, key: u64) -> Result<Vec<HttpPeer>, DialError> {
    let addresses = shared.dialer.addresses().await?;
    Ok(addresses.iter().take(MOST_TRIES).rev().map(|it| peer(shared, key, *it)).collect())
}

fn peer(shared: &Shared, key: u64, address: SocketAddr) -> HttpPeer {
    let config = &shared.config.upstream;
    let mut peer = HttpPeer::new(address, config.server.tls, config.server.host.clone());
    peer.options.connection_timeout = Some(config.connect_timeout);
    peer.options.total_connection_timeout = Some(config.connect_timeout);
    peer.options.read_timeout = Some(config.handshake_timeout);
    peer.options.write_timeout = Some(BODY_TIMEOUT);
    (peer.group_key, peer.options.idle_timeout) = match config.pool {
        // A key that no other request has: the connection is never found again. (Pingora's timer wants more than zero.)
        Pool::Never => {
            (shared.totals.next_key.fetch_add(1, Ordering::Relaxed) as u64, Some(Duration::from_millis(1)))
        }
        Pool::PerClient => (key, Some(POOLED)),
        Pool::Shared => (0, Some(POOLED)),
    };
    peer
}

#[async_trait]
impl ProxyHttp for Hooks {
    type CTX = Option<Box<Prepared>>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    fn init_downstream_modules(&self, _: &mut pingora::modules::http::HttpModules) {}

    /// Receives the request that [`serve`] has prepared.
    fn on_connection_reuse(
        &self,
        _: &mut Session,
        ctx: &mut Self::CTX,
        prepared: Box<dyn Any + Send + Sync>,
    ) {
        *ctx = prepared.downcast().ok();
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Self::CTX) -> pingora::Result<Box<HttpPeer>> {
        match ctx.as_ref().and_then(|it| it.peers.last()) {
            Some(peer) => Ok(Box::new(peer.clone())),
            None => Error::e_explain(ErrorType::InternalError, "a request without policies"),
        }
    }

    /// An address that does not answer is not the last word while there is another.
    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(prepared) = ctx
            && prepared.peers.len() > 1
        {
            prepared.peers.pop();
            error.set_retry(true);
        }
        error
    }

    async fn response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        let Some(prepared) = ctx else { return Ok(()) };
        if response.status.is_informational() {
            return Ok(());
        }
        if response.status == StatusCode::UNAUTHORIZED {
            return Error::e_explain(ErrorType::HTTPStatus(401), "the upstream answered 401");
        }
        let Prepared { local, exchange, function, seat, .. } = &mut **prepared;
        let shared = &local.worker.shared;
        let mut headers = response.headers.clone();
        admit::keep_session(shared, &local.route.resume, exchange, function, seat, &mut headers);
        exchange.response = crate::policy::ResponseHead { status: response.status, headers };
        match local.route.chain.run_now(Phase::ResponseHeaders, exchange, &local.worker.watch) {
            Ok(()) => replace_headers(response, &exchange.response.headers),
            Err(_) => Error::e_explain(ErrorType::HTTPStatus(500), "a plugin failed on the response"),
        }
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Self::CTX) -> FailToProxy {
        let nothing = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let Some(prepared) = ctx else { return nothing };
        let Prepared { local, exchange, .. } = &mut **prepared;
        let rejection = match error.etype() {
            ErrorType::HTTPStatus(500) => Rejection::because(Code::PluginFailed, error.to_string()),
            // The key is the gateway's, so a browser that is told to log in could do nothing about it.
            ErrorType::HTTPStatus(401) => Rejection::because(Code::UpstreamKey, error.to_string()),
            _ => match respond::rescue(error) {
                Some(rejection) => rejection,
                None => return nothing,
            },
        };
        if session.response_written().is_some() {
            // The head is on its way already; the connection ends in the middle, which is all that can be said.
            exchange.code = Some(rejection.code.as_str().to_owned());
            drop(local.worker.rejected(rejection));
            return nothing;
        }
        let response = respond::reject(local.worker.rejected(rejection), exchange);
        let response = respond::dress(response, Some(&local.route.chain), exchange, &local.worker.watch);
        exchange.response.status = response.status;
        let LocalResponse { status, mut headers, body } = response;
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        respond::stamp(&mut headers, &local.worker.shared.clock);
        let written = async {
            let mut header = ResponseHeader::build(status, Some(headers.len()))?;
            replace_headers(&mut header, &headers)?;
            session.downstream_session.write_error_response(header, body).await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "The browser left before it was told of an error.");
        }
        FailToProxy { error_code: status.as_u16(), can_reuse_downstream: false }
    }

    /// Pingora's own message would repeat the request's target, query included.
    fn suppress_error_log(&self, _: &Session, _: &Self::CTX, _: &Error) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut Self::CTX) {
        let Some(prepared) = ctx else { return };
        let Prepared { local, exchange, started, .. } = &mut **prepared;
        if let Some(written) = session.response_written() {
            exchange.response.status = written.status;
        } else {
            local.worker.browser_gone(exchange);
        }
        let (sent, received) = (session.body_bytes_sent() as u64, session.body_bytes_read() as u64);
        local.worker.finish_request(exchange, &local.route.chain, sent, received, *started);
    }
}

fn replace_headers(response: &mut ResponseHeader, headers: &HeaderMap) -> pingora::Result<()> {
    let stale: Vec<http::HeaderName> =
        response.headers.keys().filter(|it| !headers.contains_key(*it)).cloned().collect();
    for name in &stale {
        response.remove_header(name);
    }
    for name in headers.keys() {
        let mut values = headers.get_all(name).iter();
        let first = values.next().expect("a key has a value");
        response.insert_header(name.clone(), first.clone())?;
        for value in values {
            response.append_header(name.clone(), value.clone())?;
        }
    }
    Ok(())
}
