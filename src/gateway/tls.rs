//! TLS towards browsers and towards the upstream.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use ring::digest::{SHA256, digest};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;

use crate::clock::Clock;
use crate::config::{Place, Problem, Tls};
use crate::secret;

/// The configuration of the listener, and what an operator should know of its certificate.
///
/// TLS 1.2 and 1.3 with rustls' suites: those of Mozilla's intermediate profile that rustls has (ECDHE with AES-GCM or
/// ChaCha20-Poly1305; the profile's DHE suites do not exist in rustls). No session tickets: their key would be shared
/// by all connections, as the profile says.
pub(crate) fn server(tls: &Tls, clock: &Clock) -> Result<(Arc<ServerConfig>, Option<Expiry>), Problem> {
    let mut ends = None;
    let (chain, key, subject) = match tls {
        Tls::SelfSigned => {
            let (chain, key) = self_signed(clock);
            (chain, key, "listen.tls.self_signed".to_owned())
        }
        Tls::Files { certificate, key } => {
            let chain = certificates(certificate, "listen.tls.certificate")?;
            ends = Expiry::of(&chain, certificate, clock);
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
    Ok((Arc::new(config), ends))
}

/// The end of a chain of certificates.
pub(crate) struct Expiry {
    /// In seconds since the Unix epoch.
    pub(crate) at: i64,
    /// That it has come, or soon will.
    pub(crate) warning: Option<String>,
}

impl Expiry {
    fn of(chain: &[CertificateDer<'_>], path: &Path, clock: &Clock) -> Option<Expiry> {
        // What cannot be read here may still be good to rustls.
        let end = |it: &CertificateDer<'_>| {
            Some(parse_x509_certificate(it).ok()?.1.validity().not_after.to_datetime())
        };
        let end = chain.iter().filter_map(end).min()?;
        let (file, day, left) = (path.display(), end.date(), end - OffsetDateTime::from(clock.wall()));
        let warning = match left.whole_days() {
            _ if left.is_negative() => {
                Some(format!("the certificate in {file} has expired on {day}, browsers refuse it: renew it"))
            }
            days if left <= SOON => {
                Some(format!("the certificate in {file} expires on {day}, {days} days from now: renew it"))
            }
            _ => None,
        };
        Some(Expiry { at: end.unix_timestamp(), warning })
    }
}

/// Who renews by machine does so a month before.
const SOON: time::Duration = time::Duration::days(14);

/// The configuration of connections to other servers: verified against the system's roots or against a file, which a
/// setting names; HTTP/1.1 alone.
pub(crate) fn client(ca: Option<(&Path, &str)>) -> Result<Arc<ClientConfig>, Problem> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some((path, setting)) => {
            for certificate in certificates(path, setting)? {
                roots.add(certificate).map_err(|error| unreadable(path, setting, &error))?;
            }
        }
        None => {
            roots = system_roots();
            if roots.is_empty() {
                let message = "the system has no certificate authorities, so no upstream can be verified; install ca-certificates, or set `upstream.ca`";
                return Err(Problem::new(Place::Nowhere, "upstream.ca", message));
            }
        }
    }
    Ok(trusting(roots))
}

/// The configuration of connections to servers that may never be needed: a system without roots verifies none of them.
pub(crate) fn system_client() -> Arc<ClientConfig> {
    trusting(system_roots())
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn trusting(roots: RootCertStore) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12]);
    let builder = builder.expect("the provider has suites for both versions").with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()]; // NVCF binds a worker to a connection; h2 would share one
    config.resumption = Resumption::in_memory_sessions(64);
    Arc::new(config)
}

/// The configuration and the certificate's SHA-256 of a server that only other replicas reach.
pub(crate) fn own_server(clock: &Clock) -> (Arc<ServerConfig>, [u8; 32]) {
    let (chain, key) = self_signed(clock);
    let certificate = fingerprint(&chain[0]);
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
    let builder = builder.expect("the provider has suites for this version").with_no_client_auth();
    let mut config =
        builder.with_single_cert(chain, key).expect("certificate and key were made for each other");
    config.send_tls13_tickets = 0;
    (Arc::new(config), certificate)
}

/// The configuration of a connection to the one server that has a certificate with this SHA-256.
pub(crate) fn pinned_client(certificate: [u8; 32]) -> Arc<ClientConfig> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let builder = builder.expect("the provider has suites for this version").dangerous();
    let verifier = Arc::new(Pinned { certificate, algorithms });
    let mut config = builder.with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Trusts one certificate, which needs no authority and no name: its hash came over a way that is trusted.
#[derive(Debug)]
struct Pinned {
    certificate: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if secret::equal(&fingerprint(end_entity), &self.certificate) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into()) // it is not offered
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    digest(&SHA256, certificate).as_ref().try_into().expect("a hash has 32 bytes")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
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

/// The authorities in a PEM file, which a setting names, as they stand there.
pub(crate) fn authorities(path: &Path, setting: &str) -> Result<Vec<u8>, Problem> {
    certificates(path, setting)?;
    std::fs::read(path).map_err(|error| unreadable(path, setting, &error))
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
