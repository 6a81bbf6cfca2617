//! Opens a port: an authenticated Binding from the media socket tells a STUN server that a session may come through it,
//! and tells us under which address (RFC 8489; NVCF's streaming proxy).
//!
//! Which of STUN's two kinds of credentials the server wants is found out: short-term ones first; whoever refuses them is
//! asked without any, and a 401 that names a realm asks for long-term ones (RFC 8489 section 9.2.4: a server of that
//! kind answers 400 to short-term ones).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rtc::crypto::{RTCCryptoProvider, default_provider};
use rtc::stun::attributes::{ATTR_NONCE, ATTR_REALM, ATTR_USERNAME};
use rtc::stun::error_code::{CODE_STALE_NONCE, ErrorCodeAttribute};
use rtc::stun::fingerprint::FINGERPRINT;
use rtc::stun::integrity::MessageIntegrity;
use rtc::stun::message::{
    BINDING_ERROR, BINDING_REQUEST, BINDING_SUCCESS, Getter, Message, Setter, TransactionId,
};
use rtc::stun::textattrs::TextAttribute;
use rtc::stun::xoraddr::XorMappedAddress;
use tokio::net::lookup_host;
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::streaming::creds::Creds;
use crate::streaming::mux::Mux;
use crate::telemetry::Metrics;

/// A mapping is refreshed well before a NAT forgets it.
const REFRESH: Duration = Duration::from_secs(20);

/// After a failure: the server may only be starting.
const RETRY: Duration = Duration::from_secs(5);

/// First wait for an answer; it doubles with each request (RFC 8489 section 6.2.1).
const FIRST_WAIT: Duration = Duration::from_millis(500);
const REQUESTS: u32 = 5;

#[derive(Debug, thiserror::Error)]
enum StunError {
    #[error("cannot resolve {0:?}")]
    Resolve(String),
    #[error("{0:?} has no address of the family of the media port, which is {1}")]
    Family(String, &'static str),
    #[error("no answer")]
    Silence,
    #[error("refused: {0}")]
    Refused(String),
    #[error("the answer makes no sense: {0}")]
    Garbage(String),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Short-term, none, long-term, long-term with a fresh nonce.
const MOST_PROOFS: u32 = 4;

/// How a request proves who sends it.
enum Proof {
    ShortTerm,
    Nothing,
    LongTerm { realm: String, nonce: String },
}

/// Keeps the mapping of the present credentials alive.
pub(super) async fn run(
    mux: Arc<Mux>,
    mut creds: watch::Receiver<Option<Creds>>,
    metrics: Metrics,
    clock: Clock,
) {
    let provider = match default_provider() {
        Ok(provider) => provider,
        Err(error) => return tracing::error!(%error, "There is no crypto for STUN."),
    };
    let mut last = None;
    loop {
        let present = creds.borrow_and_update().clone();
        let Some(present) = present else {
            if creds.changed().await.is_err() {
                return;
            }
            continue;
        };
        if last.as_ref() != Some(&present) {
            mux.set_mapped(None); // what another server has seen is no address here
            last = Some(present.clone());
        }
        let bound = tokio::select! {
            bound = bind(&mux, &present, &*provider, &clock) => bound,
            changed = creds.changed() => match changed {
                // The old ones may be of no use by now, and sessions wait for the new ones.
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let wait = match bound {
            Ok(mapped) => {
                metrics.streaming.stun("ok");
                tracing::debug!(%mapped, "The STUN server has opened a port.");
                mux.set_mapped(Some(mapped));
                REFRESH
            }
            Err(error) => {
                metrics.streaming.stun("failed");
                tracing::warn!(server = %format!("{}:{}", present.host, present.port), %error, "The STUN server opened no port.");
                mux.set_mapped(None);
                RETRY
            }
        };
        tokio::select! {
            () = clock.sleep(wait) => {}
            changed = creds.changed() => if changed.is_err() { return },
        }
    }
}

async fn bind(
    mux: &Mux,
    creds: &Creds,
    provider: &dyn RTCCryptoProvider,
    clock: &Clock,
) -> Result<SocketAddr, StunError> {
    let wants_v4 = mux.address().is_ipv4();
    let mut addresses = lookup_host((creds.host.as_str(), creds.port))
        .await
        .map_err(|_| StunError::Resolve(creds.host.clone()))?;
    let server = addresses
        .find(|it| it.is_ipv4() == wants_v4)
        .ok_or_else(|| StunError::Family(creds.host.clone(), if wants_v4 { "IPv4" } else { "IPv6" }))?;
    let mut answers = mux.listen_to_stun(server);
    let mut proof = Proof::ShortTerm;
    for _ in 0..MOST_PROOFS {
        let (id, request) = request(creds, &proof, provider)?;
        let answer = ask(mux, server, &request, id, &mut answers, clock).await?;
        if answer.typ == BINDING_SUCCESS {
            let mut mapped = XorMappedAddress::default();
            mapped.get_from(&answer).map_err(|it| StunError::Garbage(it.to_string()))?;
            return Ok(SocketAddr::new(mapped.ip, mapped.port));
        }
        let mut code = ErrorCodeAttribute::default();
        code.get_from(&answer).map_err(|it| StunError::Garbage(it.to_string()))?;
        let realm = TextAttribute::get_from_as(&answer, ATTR_REALM);
        let nonce = TextAttribute::get_from_as(&answer, ATTR_NONCE);
        let is_stale = code.code == CODE_STALE_NONCE;
        proof = match (proof, realm, nonce) {
            (Proof::LongTerm { .. }, _, _) if !is_stale => return Err(StunError::Refused(code.to_string())),
            (_, Ok(realm), Ok(nonce)) => Proof::LongTerm { realm: realm.text, nonce: nonce.text },
            (Proof::ShortTerm, _, _) => Proof::Nothing,
            _ => return Err(StunError::Refused(code.to_string())),
        };
    }
    Err(StunError::Refused("each proof in turn".into()))
}

fn request(
    creds: &Creds,
    proof: &Proof,
    provider: &dyn RTCCryptoProvider,
) -> Result<(TransactionId, Vec<u8>), StunError> {
    let wrong = |it: rtc::shared::error::Error| StunError::Garbage(it.to_string());
    let password = creds.password.expose().to_owned();
    let mut setters: Vec<Box<dyn Setter + '_>> =
        vec![Box::new(TransactionId::new()), Box::new(BINDING_REQUEST)];
    let username = || Box::new(TextAttribute::new(ATTR_USERNAME, creds.username.clone()));
    match proof {
        Proof::Nothing => {}
        Proof::ShortTerm => {
            setters.push(username());
            let provider = provider.crypto();
            setters
                .push(Box::new(MessageIntegrity::new_short_term_integrity_with_provider(password, provider)));
        }
        Proof::LongTerm { realm, nonce } => {
            setters.push(username());
            setters.push(Box::new(TextAttribute::new(ATTR_REALM, realm.clone())));
            setters.push(Box::new(TextAttribute::new(ATTR_NONCE, nonce.clone())));
            let (name, realm, provider) = (creds.username.clone(), realm.clone(), provider.crypto());
            let integrity =
                MessageIntegrity::new_long_term_integrity_with_provider(name, realm, password, provider);
            setters.push(Box::new(integrity.map_err(wrong)?));
        }
    }
    setters.push(Box::new(FINGERPRINT));
    let mut message = Message::new();
    message.build(&setters).map_err(wrong)?;
    Ok((message.transaction_id, message.raw))
}

/// Sends a request until it is answered.
async fn ask(
    mux: &Mux,
    server: SocketAddr,
    request: &[u8],
    id: TransactionId,
    answers: &mut mpsc::Receiver<Bytes>,
    clock: &Clock,
) -> Result<Message, StunError> {
    let mut wait = FIRST_WAIT;
    for _ in 0..REQUESTS {
        mux.send_to(request, server).await?;
        let answer = async {
            while let Some(bytes) = answers.recv().await {
                let mut message = Message::new();
                let is_whole = message.unmarshal_binary(&bytes).is_ok();
                if is_whole
                    && message.transaction_id == id
                    && matches!(message.typ, BINDING_SUCCESS | BINDING_ERROR)
                {
                    return Some(message);
                }
            }
            None
        };
        if let Some(Some(answer)) = clock.timeout(wait, answer).await {
            return Ok(answer);
        }
        wait *= 2;
    }
    Err(StunError::Silence)
}
