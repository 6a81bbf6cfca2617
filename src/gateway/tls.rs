//! TLS towards browsers and towards the upstream.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use time::OffsetDateTime;

use crate::clock::Clock;
use crate::config::{Place, Problem, Tls};

/// The configuration of the listener.
///
/// TLS 1.2 and 1.3 with rustls' suites: those of Mozilla's intermediate profile that rustls has (ECDHE with AES-GCM or
/// ChaCha20-Poly1305; the profile's DHE suites do not exist in rustls). No session tickets: their key would be shared
/// by all connections, as the profile says.
pub(crate) fn server(tls: &Tls, clock: &Clock) -> Result<Arc<ServerConfig>, Problem> {
    let (chain, key, subject) = match tls {
        Tls::SelfSigned => {
            let (chain, key) = self_signed(clock);
            (chain, key, "listen.tls.self_signed".to_owned())
        }
        Tls::Files { certificate, key } => {
            let chain = certificates(certificate, "listen.tls.certificate")?;
            let key_der = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unreadable(key, "listen.tls.key", &error))?;
            (chain, key_der, format!("listen.tls.certificate = {:?}", certificate.display()))
        }
    };
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12]);
    let builder = builder.expect("the provider has suites for both versions").with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key).map_err(|it| {
        Problem::new(Place::Nowhere, subject, format!("certificate and key cannot be used: {it}"))
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The configuration of upstream connections: verified against the system's roots or against a file, HTTP/1.1 alone.
pub(crate) fn client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, Problem> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(path, "upstream.ca")? {
                roots.add(certificate).map_err(|error| unreadable(path, "upstream.ca", &error))?;
            }
        }
        None => {
            let loaded = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(loaded.certs);
            if roots.is_empty() {
                let message = "the system has no certificate authorities, so no upstream can be verified; install ca-certificates, or set `upstream.ca`";
                return Err(Problem::new(Place::Nowhere, "upstream.ca", message));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12]);
    let builder = builder.expect("the provider has suites for both versions").with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()]; // NVCF binds a worker to a connection; h2 would share one
    config.resumption = Resumption::in_memory_sessions(64);
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A certificate for this machine that nobody has signed.
fn self_signed(clock: &Clock) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().expect("a key can be generated");
    let mut params = CertificateParams::new(vec!["localhost".into()]).expect("`localhost` is a DNS name");
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.subject_alt_names.push(SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()));
    params.distinguished_name.push(DnType::CommonName, "streamgate, self-signed");
    let now = OffsetDateTime::from(clock.wall());
    params.not_before = now - time::Duration::DAY; // a phone's clock may be behind
    params.not_after = now + time::Duration::days(365);
    let certificate = params.self_signed(&key).expect("the parameters are complete");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    (vec![certificate.der().clone()], key)
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable(path, key, &error))?;
    if certificates.is_empty() {
        return Err(unreadable(path, key, &"no certificate in it"));
    }
    Ok(certificates)
}

fn unreadable(path: &Path, key: &str, error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Place::file(path), key, format!("not a readable PEM file: {error}"))
}
