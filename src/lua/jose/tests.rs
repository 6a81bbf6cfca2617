//! Tokens that are good, and the many ways in which one can be bad.
//!
//! Vectors are those of RFC 7515 appendix A and RFC 8037 appendix A; `pyjwt.json` has tokens that PyJWT
//! signed.

use ring::rand::SystemRandom;
use ring::signature::{self as ring_signature, EcdsaKeyPair, KeyPair, RsaKeyPair};
use serde_json::json;

use super::key::KeyError;
use super::signer::{SignError, message};
use super::*;

/// `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048`; made for these tests and used nowhere
/// else.
const RSA_PRIVATE: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQDykij67vINwT4i\n\
usXB0AQIP9ZA9LwJWUZ1meQNNlo3dy392WEaSVVDSGnvY+AMZQHa4486S/Q84Si1\n\
l5dWdu4wEbcGEk9amJ8sEo4/vyHp/9QOpYbWwB5mT/vrawWHDZ0RDf2sxrMesJlY\n\
D1aaAevgFRN3+n/sDLZrb6qHWTYWk+7hwPRGl0rs++sK+nzZ7QRzfqxxv3Vu7K4F\n\
6BPi5YnC/CijFZ3T/GO49VjKbuD59vXQittJGoTe28g93ph167d6x5fE5nAzWhDX\n\
+poR7M2EWKxBqvYDbB0eaxdTiiatnr0sGCpfL2zkINCOw+uck6+RsXb1OohC8B6B\n\
TGlXgZYnAgMBAAECggEAI69vlUWZw9RDToX+RH5UWYeqqXECSLh4LneD8+hPFWHU\n\
bkfl38wcswKa3buVC73AVsdWHClttkHEOhLMZ3f6SoVl+4quCedHY2ByH4aqzUCe\n\
8xipjDuZ5/X/BanU7QK1B1FGRH4RfoOpy36rgDSlfW3G/huSviiQnaBBN3A0Y4BO\n\
jYDYt86L8s5DGBNKR3R4xRsVR7f/3HWJapUjZ4txrWFS1ci5HbRZOv2zT/fiWYcE\n\
phbYbKvsRScn7Jl/hsmAI1kNQpqgQbyObRVqMzMcXIPGSEFcAmhlpnzjxfRJc35Z\n\
ONJ47Vlu2zNwxZ7ovRBWd/c6bGOYCdcjDE/SjSMOgQKBgQD7aBPQ3F1DeRSwNH8T\n\
zYZMpZPartRofrOtfAPNW6Ce5dyX8421isB7S7yNcMx86f4GnZbFoyqldX/3JyMY\n\
EElFd4DzjqWtd3ImmIuflb/hisTGdAx3E8pejwOf4yCNo2yPPF2bzM1OLGLtOOjk\n\
1O5xoo6/yY9gjLlt2rlDDlhbsQKBgQD3AMFUd2F5hWeNFoiozrD83o+FrS6cYTE8\n\
A0Gv3rXJGkqA4liaQ5DnWMB4AJTXOgfIA4bVpvRYCW5yEsPRZEwgLHQeSoGvUs7P\n\
VVEeA3OQCv4RdFeKe9FA+r/zIgdDgv8uEI44niUvjYQBL/uR80TaBLjL9l5jyccu\n\
mB/6XEV9VwKBgFtIqwlHOkXpjO194jZahc0GwezBVjaq6qqvQOIrxuJrK/GwaV/l\n\
hYY/NbNVpaolfCsCxV/1ouJ5C4G+ICv4neIvRg8pWFbn6/a/pNLJGObX8CLuuCf0\n\
c6Jp4zMG0Scck6pejM6pSlJ8I19nLokIF5wDHjndAcZY0mtk46fJaaPBAoGAQbX+\n\
uNTlpqmZ6cvz4UzTgwJGll6DRvEIYxnOsNYD8JNA/Na6kZemBhXzZjlpX3S9uzVM\n\
+qvm10DzE//v/lW7dte8sI5Lv/O8tyXQZbavWMPD4arc2yejfLD4vdrwqcJA1uVq\n\
oJ9Z7zOryZEVUTexunqFGyXY6J02kyu/XiCMEBMCgYBUzeixLRG5OKUrQ/UBwszz\n\
/ueukQCS8kPVYxrECmPpYS0fEE/bHBa5x/oVZblL/sgO+jDiMG9GzzlYHG2nJzhc\n\
r8twVvPSyXYOL+qsFNGGZXI3+yKiR4uT9FAPdr55QAH233SKUkZnTgmgyOxorsBz\n\
Tpzy77IC9nof9f9RGmykCg==\n\
-----END PRIVATE KEY-----\n";

/// The public key to it, as `openssl rsa -pubout` writes it.
const RSA_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA8pIo+u7yDcE+IrrFwdAE\n\
CD/WQPS8CVlGdZnkDTZaN3ct/dlhGklVQ0hp72PgDGUB2uOPOkv0POEotZeXVnbu\n\
MBG3BhJPWpifLBKOP78h6f/UDqWG1sAeZk/762sFhw2dEQ39rMazHrCZWA9WmgHr\n\
4BUTd/p/7Ay2a2+qh1k2FpPu4cD0RpdK7PvrCvp82e0Ec36scb91buyuBegT4uWJ\n\
wvwooxWd0/xjuPVYym7g+fb10IrbSRqE3tvIPd6Ydeu3eseXxOZwM1oQ1/qaEezN\n\
hFisQar2A2wdHmsXU4omrZ69LBgqXy9s5CDQjsPrnJOvkbF29TqIQvAegUxpV4GW\n\
JwIDAQAB\n\
-----END PUBLIC KEY-----\n";

/// The same one, as `openssl rsa -RSAPublicKey_out` writes it.
const RSA_PUBLIC_PKCS1: &str = "\
-----BEGIN RSA PUBLIC KEY-----\n\
MIIBCgKCAQEA8pIo+u7yDcE+IrrFwdAECD/WQPS8CVlGdZnkDTZaN3ct/dlhGklV\n\
Q0hp72PgDGUB2uOPOkv0POEotZeXVnbuMBG3BhJPWpifLBKOP78h6f/UDqWG1sAe\n\
Zk/762sFhw2dEQ39rMazHrCZWA9WmgHr4BUTd/p/7Ay2a2+qh1k2FpPu4cD0RpdK\n\
7PvrCvp82e0Ec36scb91buyuBegT4uWJwvwooxWd0/xjuPVYym7g+fb10IrbSRqE\n\
3tvIPd6Ydeu3eseXxOZwM1oQ1/qaEezNhFisQar2A2wdHmsXU4omrZ69LBgqXy9s\n\
5CDQjsPrnJOvkbF29TqIQvAegUxpV4GWJwIDAQAB\n\
-----END RSA PUBLIC KEY-----\n";

/// `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024`, `openssl rsa -pubout`.
const RSA_PUBLIC_1024: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC8qexJNc1jWUw0IvvHEdAAAs2y\n\
zMwiNJkCDThliH/L/KKc4YLQhyLPsMdNnb/DQp+/PoQIlNA006mltg1JEpK65WVd\n\
cqVIOHVZJ7Eoq/NHYSguN/V+20ts3ou1/WHxRv51gH48VgIEM/wiyYExARS0wfZl\n\
ne83TFMibuFzZs2p0QIDAQAB\n\
-----END PUBLIC KEY-----\n";

/// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521`, `openssl pkey -pubout`.
const P521_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQB0UYxea48OdgWy6HbfWZ3GS4Ha+iD\n\
fL5unP1iRQUdH8QRrL2ctXcrvKGkGkM2eq2HmjPczUP4ywF2+hl0A7Att/QAKgTN\n\
ojahr5TIwk3hgG5FMXWPTnBZYMqhZ4z2XbYbEU/5w8va1ntsRlmU1avM0i/jCks9\n\
PuVBUc3XIcMVylL0jqY=\n\
-----END PUBLIC KEY-----\n";

/// The public keys of `pyjwt.json` as openssl writes them.
const P256_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf0qKfGBUa4Kuic22LQnPvzD4Gg+x\n\
x7+RwiFvzblUkH+yjGMHGcnAZFHG26WC53kKiz8DwFER3sQSlZkt120k0A==\n\
-----END PUBLIC KEY-----\n";
const P384_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAExfX0y5EHmUUcdw8xiNpPpubmzkwvXfcW\n\
m4cVASJ9p45MMwB5U0BdKqYeI3AoN2ZeWgwVce0q5lzIyUKkehM71hnLyZV6y7GQ\n\
MijcrGrQ/Q1YWU74HjsWIDLhJdBkAdG3\n\
-----END PUBLIC KEY-----\n";
const ED25519_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MCowBQYDK2VwAyEA0UxAjMyRuWt8owhHpX1PZpZ9Sawx0puz4qU9jocsmUc=\n\
-----END PUBLIC KEY-----\n";

const PYJWT: &str = include_str!("pyjwt.json");

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

const NOW: f64 = 1_700_000_000.0;

// ---- what signs, and what is wanted ----

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// A private key of any kind, with its public one.
struct TestKey {
    algorithm: Algorithm,
    sign: Sign,
    keys: KeySet,
}

impl TestKey {
    fn new(algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        let (sign, keys): (Sign, _) = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                let digest = match algorithm {
                    Algorithm::HS256 => ring::hmac::HMAC_SHA256,
                    Algorithm::HS384 => ring::hmac::HMAC_SHA384,
                    _ => ring::hmac::HMAC_SHA512,
                };
                let key = ring::hmac::Key::new(digest, SECRET);
                let sign = move |it: &[u8]| ring::hmac::sign(&key, it).as_ref().to_vec();
                (Box::new(sign), KeySet::secret(SECRET).expect("it is long enough"))
            }
            Algorithm::ES384 => {
                let kind = &ring_signature::ECDSA_P384_SHA384_FIXED_SIGNING;
                let document = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("random numbers");
                let pair = EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).expect("ring wrote it");
                let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
                let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
                let keys = set(&[json!({ "kty": "EC", "crv": "P-384", "x": x, "y": y })]);
                (Box::new(move |it| pair.sign(&random, it).expect("random numbers").as_ref().to_vec()), keys)
            }
            Algorithm::ES256 | Algorithm::EdDSA => {
                let signer = Signer::generate(algorithm).expect("random numbers");
                let keys = set(&[signer.jwk("a")]);
                (Box::new(move |it| signer.signature(it).expect("random numbers")), keys)
            }
            _ => {
                let padding: &dyn ring_signature::RsaEncoding = match algorithm {
                    Algorithm::RS256 => &ring_signature::RSA_PKCS1_SHA256,
                    Algorithm::RS384 => &ring_signature::RSA_PKCS1_SHA384,
                    Algorithm::RS512 => &ring_signature::RSA_PKCS1_SHA512,
                    Algorithm::PS256 => &ring_signature::RSA_PSS_SHA256,
                    Algorithm::PS384 => &ring_signature::RSA_PSS_SHA384,
                    _ => &ring_signature::RSA_PSS_SHA512,
                };
                let der = pem::parse(RSA_PRIVATE).expect("openssl wrote it");
                let pair = RsaKeyPair::from_pkcs8(der.contents()).expect("openssl wrote it");
                let sign = move |it: &[u8]| {
                    let mut signature = vec![0; pair.public().modulus_len()];
                    pair.sign(padding, &random, it, &mut signature).expect("random numbers");
                    signature
                };
                (Box::new(sign), KeySet::from_pem(RSA_PUBLIC).expect("openssl wrote it"))
            }
        };
        TestKey { algorithm, sign, keys }
    }

    /// A token with this header and these claims, whatever they are.
    fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.signed(message(header, claims))
    }

    fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({ "alg": self.algorithm.as_str() }), claims)
    }

    fn signed(&self, message: String) -> String {
        let signature = URL_SAFE_NO_PAD.encode((self.sign)(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

fn set(keys: &[Value]) -> KeySet {
    KeySet::from_jwks(json!({ "keys": keys }).to_string().as_bytes()).expect("it is a set")
}

/// Wants nothing but a signature by any algorithm and an `exp` that is to come.
fn wanted() -> Verification {
    Verification {
        algorithms: Algorithm::ALL.to_vec(),
        issuers: None,
        audiences: None,
        leeway: 0.0,
        required: Vec::new(),
        exp_required: true,
        now: NOW,
    }
}

fn good_claims() -> Value {
    json!({ "sub": "ada", "exp": NOW + 60.0 })
}

fn result(token: &str, keys: &KeySet, wanted: &Verification) -> Result<(), Reason> {
    verify(token, keys, wanted).map(|_| ())
}

/// `header.payload.signature` with one of the parts replaced.
fn with_part(token: &str, index: usize, part: &str) -> String {
    let mut parts: Vec<_> = token.split('.').collect();
    parts[index] = part;
    parts.join(".")
}

// ---- algorithms ----

#[test]
fn a_token_is_good_with_its_key_and_bad_with_anything_changed() {
    for algorithm in Algorithm::ALL {
        let (key, other) = (TestKey::new(algorithm), TestKey::new(algorithm));
        let token = key.token(&good_claims());
        let claims = verify(&token, &key.keys, &wanted()).expect("it is good");
        assert_eq!(claims.claims["sub"], "ada");
        assert_eq!(claims.header["alg"], algorithm.as_str());

        let check = |token: &str, expected: Reason| {
            assert_eq!(result(token, &key.keys, &wanted()), Err(expected), "{algorithm} {token}");
        };
        let forged = URL_SAFE_NO_PAD.encode(json!({ "sub": "eve", "exp": NOW + 60.0 }).to_string());
        check(&with_part(&token, 1, &forged), Reason::Signature);
        check(&with_part(&token, 2, ""), Reason::Signature);
        check(&with_part(&token, 2, "AAAA"), Reason::Signature);
        check(&with_part(&token, 2, &URL_SAFE_NO_PAD.encode([0; 64])), Reason::Signature);
        check(&with_part(&token, 2, &URL_SAFE_NO_PAD.encode([0; 256])), Reason::Signature);
        check(&with_part(&token, 2, &URL_SAFE_NO_PAD.encode([0; 2048])), Reason::Signature);
        check(&format!("{token}="), Reason::Malformed);

        // Of RSA there is one key for these tests, of HMAC one secret.
        if matches!(algorithm, Algorithm::ES256 | Algorithm::ES384 | Algorithm::EdDSA) {
            assert_eq!(result(&token, &other.keys, &wanted()), Err(Reason::Signature), "{algorithm}");
        }
        let without = wanted().algorithms.into_iter().filter(|it| *it != algorithm).collect();
        let result = result(&token, &key.keys, &Verification { algorithms: without, ..wanted() });
        assert_eq!(result, Err(Reason::Algorithm), "{algorithm}");
    }
}

#[test]
fn an_algorithm_never_verifies_with_a_key_of_another_kind() {
    let keys: Vec<_> = Algorithm::ALL.into_iter().map(TestKey::new).collect();
    for (signing, verifying) in keys.iter().flat_map(|a| keys.iter().map(move |b| (a, b))) {
        let expected = match (signing.algorithm.as_str(), verifying.algorithm.as_str()) {
            (a, b) if a == b => continue,
            // One RSA key and one secret are for all their algorithms.
            (a, b) if a[..1] == b[..1] && a.starts_with('H') => Ok(()),
            (a, b) if "RP".contains(&a[..1]) && "RP".contains(&b[..1]) => Ok(()),
            _ => Err(Reason::Algorithm),
        };
        let token = signing.token(&good_claims());
        let result = result(&token, &verifying.keys, &wanted());
        assert_eq!(result, expected, "{} with a key for {}", signing.algorithm, verifying.algorithm);
    }
}

#[test]
fn a_public_key_is_no_secret() {
    // The attack: the public key is known, so sign with it as if it were the secret of HS256 (RFC 8725 §2.1).
    let keys = KeySet::from_pem(RSA_PUBLIC).expect("openssl wrote it");
    let der = pem::parse(RSA_PUBLIC).expect("openssl wrote it");
    let no_newline = RSA_PUBLIC.trim_end();
    for secret in [RSA_PUBLIC.as_bytes(), no_newline.as_bytes(), der.contents()] {
        let claims = good_claims();
        let token =
            Signer::hs(secret).sign(claims.as_object().expect("it is one"), None).expect("HMAC cannot fail");
        assert_eq!(result(&token, &keys, &wanted()), Err(Reason::Algorithm));
        let only = Verification { algorithms: vec![Algorithm::RS256], ..wanted() };
        assert_eq!(result(&token, &keys, &only), Err(Reason::Algorithm));
    }
    // Nor does a set that is published have secrets.
    let jwk = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET), "alg": "HS256" });
    assert_eq!(set(&[jwk]).len(), 0);
}

#[test]
fn a_token_without_signature_is_refused() {
    let key = TestKey::new(Algorithm::RS256);
    for name in
        ["none", "None", "NONE", "nOnE", "", "RS1", "rs256", "RS256 ", "ES256K", "ES512", "HS1", "RSA-OAEP"]
    {
        let token = message(&json!({ "alg": name }), &good_claims());
        for signature in ["", "AAAA"] {
            let token = format!("{token}.{signature}");
            assert_eq!(result(&token, &key.keys, &wanted()), Err(Reason::Algorithm), "{name}");
            assert_eq!(peek(&token), Err(Reason::Algorithm), "{name}");
        }
    }
    // RFC 7515 A.5.
    let token = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGF\
        tcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.";
    assert_eq!(result(token, &key.keys, &wanted()), Err(Reason::Algorithm));
}

#[test]
fn ed25519_is_another_name_of_eddsa() {
    let key = TestKey::new(Algorithm::EdDSA);
    let token = key.token_with(&json!({ "alg": "Ed25519" }), &good_claims());
    assert_eq!(result(&token, &key.keys, &wanted()), Ok(()));
    assert_eq!(Algorithm::parse("none"), None);
    assert!(Algorithm::ALL.into_iter().all(|it| Algorithm::parse(it.as_str()) == Some(it)));
}

#[test]
fn an_ecdsa_signature_is_two_numbers_and_not_der() {
    // CVE-2022-21449: a signature of zeros that verified everything.
    let key = TestKey::new(Algorithm::ES256);
    let token = key.token(&good_claims());
    let order = b"\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\
                  \xbc\xe6\xfa\xad\xa7\x17\x9e\x84\xf3\xb9\xca\xc2\xfc\x63\x25\x51";
    for signature in [vec![0; 64], order.repeat(2), b"\x30\x06\x02\x01\x00\x02\x01\x00".to_vec()] {
        let token = with_part(&token, 2, &URL_SAFE_NO_PAD.encode(signature));
        assert_eq!(result(&token, &key.keys, &wanted()), Err(Reason::Signature));
    }
}

// ---- tokens of others ----

#[test]
fn the_vectors_of_the_rfcs_verify() {
    let hs256 = URL_SAFE_NO_PAD
        .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
        .expect("RFC 7515 A.1");
    let rs256 = json!({ "kty": "RSA", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTb\
        ji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b326\
        90r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665x\
        smtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk\
        2PAcDTW9gb54h4FRWyuXpoQ" });
    let es256 = json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" });
    let ed25519 =
        json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });

    const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS\
        9pc19yb290Ijp0cnVlfQ";
    let check = |keys: &KeySet, token: &str| {
        let wanted = Verification { now: 1_300_819_379.0, ..wanted() };
        assert_eq!(
            verify(token, keys, &wanted).map(|it| it.claims["iss"].clone()),
            Ok("joe".into()),
            "{token}"
        );
    };
    check(
        &KeySet::secret(&hs256).expect("64 bytes"),
        &format!(
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{CLAIMS}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_w\
            W1gFWFOEjXk"
        ),
    );
    check(
        &set(&[rs256]),
        &format!(
            "eyJhbGciOiJSUzI1NiJ9.{CLAIMS}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzER\
        at0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYN\
        X4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO-\
        -xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWk\
        WywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
        ),
    );
    check(
        &set(&[es256]),
        &format!(
            "eyJhbGciOiJFUzI1NiJ9.{CLAIMS}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw\
            5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
        ),
    );

    // RFC 8037 A.4 signs a sentence and not claims, so its token has a good signature and is malformed after
    // that.
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt\
        7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(result(token, &set(std::slice::from_ref(&ed25519)), &wanted()), Err(Reason::Malformed));
    let changed = with_part(token, 1, "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmd");
    assert_eq!(result(&changed, &set(&[ed25519]), &wanted()), Err(Reason::Signature));
}

#[test]
fn tokens_of_pyjwt_verify() {
    let fixture: Value = serde_json::from_str(PYJWT).expect("it is JSON");
    let public = set(fixture["jwks"]["keys"].as_array().expect("it is a list"));
    assert_eq!((public.len(), public.n_skipped()), (4, 0));
    let secret =
        KeySet::secret(fixture["secret"].as_str().expect("it is text").as_bytes()).expect("64 bytes");
    let pem = format!("{RSA_PUBLIC}{P256_PUBLIC}{P384_PUBLIC}{ED25519_PUBLIC}");
    let pem = KeySet::from_pem(&pem).expect("openssl wrote it");

    let wanted = Verification {
        issuers: Some(vec!["https://issuer.example".to_owned()]),
        audiences: Some(vec!["streamgate".to_owned()]),
        required: vec!["sub".to_owned(), "scope".to_owned()],
        ..wanted()
    };
    for algorithm in Algorithm::ALL {
        let token = fixture["tokens"][algorithm.as_str()].as_str().expect("there is one for each algorithm");
        let sets = if algorithm.as_str().starts_with('H') { vec![&secret] } else { vec![&public, &pem] };
        for keys in sets {
            let claims = verify(token, keys, &wanted).expect("PyJWT signed it");
            assert_eq!(claims.claims["name"], "Åda 😀", "{algorithm}");
            let late = Verification { now: 32_503_680_000.0, ..wanted.clone() };
            assert_eq!(result(token, keys, &late), Err(Reason::Expired), "{algorithm}");
        }
    }
}

// ---- which key ----

#[test]
fn the_kid_selects_the_key() {
    let a = Signer::generate(Algorithm::EdDSA).expect("random");
    let b = Signer::generate(Algorithm::ES256).expect("random");
    let keys = set(&[a.jwk("a"), b.jwk("b")]);
    let claims = good_claims();
    let claims = claims.as_object().expect("it is one");
    let check = |signer: &Signer, kid: Option<&str>, expected: Result<(), Reason>| {
        let token = signer.sign(claims, kid).expect("random numbers");
        assert_eq!(peek(&token).map(|it| it.kid), Ok(kid.map(str::to_owned)));
        assert_eq!(result(&token, &keys, &wanted()), expected, "{kid:?}");
    };
    check(&a, Some("a"), Ok(()));
    check(&b, Some("b"), Ok(()));
    check(&a, None, Ok(()));
    check(&b, None, Ok(()));
    check(&a, Some("b"), Err(Reason::Algorithm)); // the key named so is for ES256
    check(&a, Some("c"), Err(Reason::UnknownKey));
    check(&a, Some(""), Err(Reason::UnknownKey));
    let c = Signer::generate(Algorithm::EdDSA).expect("random");
    check(&c, Some("a"), Err(Reason::Signature));
    check(&c, None, Err(Reason::Signature));
    assert!(keys.knows("a") && !keys.knows("c"));

    let token = a.sign(claims, Some("a")).expect("random numbers");
    assert_eq!(result(&token, &set(&[]), &wanted()), Err(Reason::UnknownKey));
}

#[test]
fn a_key_without_a_name_is_tried_for_any_name_that_is_not_found() {
    let signer = Signer::generate(Algorithm::ES256).expect("random");
    let mut jwk = signer.jwk("a");
    jwk.as_object_mut().expect("it is one").remove("kid");
    let claims = good_claims();
    let token = signer.sign(claims.as_object().expect("it is one"), Some("b")).expect("random");
    assert_eq!(result(&token, &set(std::slice::from_ref(&jwk)), &wanted()), Ok(()));
    let other = Signer::generate(Algorithm::ES256).expect("random");
    assert_eq!(result(&token, &set(&[jwk, other.jwk("b")]), &wanted()), Err(Reason::Signature));
}

#[test]
fn a_jwk_is_used_for_its_own_algorithm_only() {
    let key = TestKey::new(Algorithm::PS256);
    let fixture: Value = serde_json::from_str(PYJWT).expect("it is JSON");
    let check = |algorithm: &str, expected: Result<(), Reason>| {
        let mut jwk = fixture["jwks"]["keys"][0].clone();
        jwk["alg"] = algorithm.into();
        assert_eq!(result(&key.token(&good_claims()), &set(&[jwk]), &wanted()), expected, "{algorithm}");
    };
    check("PS256", Ok(()));
    check("RS256", Err(Reason::Algorithm));
    check("ES256", Err(Reason::UnknownKey)); // contradicts its type: skipped
    check("RSA-OAEP", Err(Reason::UnknownKey));
}

#[test]
fn no_more_than_eight_keys_are_tried() {
    let signers: Vec<_> = (0..9).map(|_| Signer::generate(Algorithm::EdDSA).expect("random")).collect();
    let keys = set(&signers.iter().map(|it| it.jwk("same")).collect::<Vec<_>>());
    let claims = good_claims();
    for (n, signer) in signers.iter().enumerate() {
        for kid in [None, Some("same")] {
            let token = signer.sign(claims.as_object().expect("it is one"), kid).expect("random");
            let expected = if n < 8 { Ok(()) } else { Err(Reason::Signature) };
            assert_eq!(result(&token, &keys, &wanted()), expected, "{n}");
        }
    }
}

// ---- the form of a token ----

#[test]
fn a_token_of_another_form_is_malformed() {
    let key = TestKey::new(Algorithm::ES256);
    let token = key.token(&good_claims());
    let check =
        |token: &str| assert_eq!(result(token, &key.keys, &wanted()), Err(Reason::Malformed), "{token}");
    for text in
        ["", ".", "..", "...", "a.b.c", "a", "{}", &token[1..], &format!("{token}."), &format!(".{token}")]
    {
        check(text);
    }
    check(&token.replacen('.', "..", 1));
    check(&format!("{token}.a.b")); // five parts: encrypted
    check(&format!(" {token}"));
    check(&format!("{token}\n"));
    check(&format!("Bearer {token}"));
    check(&with_part(&token, 0, "é"));

    let header = |it: &str| key.signed(format!("{}.e30", URL_SAFE_NO_PAD.encode(it)));
    check(&header("{}"));
    check(&header("[]"));
    check(&header(r#"{"alg":["ES256"]}"#));
    check(&header(r#"{"alg":null}"#));
    check(&header(r#"{"alg":"ES256","alg":"ES256"}"#));
    check(&header(r#"{"alg":"ES256","kid":7}"#));
    check(&header(r#"{"alg":"ES256","kid":null}"#));
    check(&header(&format!(r#"{{"alg":"ES256","kid":"{}"}}"#, "k".repeat(513))));
    check(&header(&format!(r#"{{"alg":"ES256","x":{}{}}}"#, "[".repeat(5000), "]".repeat(5000))));
    check(&header(r#"{"alg":"ES256"} "#.repeat(2).as_str()));

    let payload = |it: &[u8]| key.signed(format!("eyJhbGciOiJFUzI1NiJ9.{}", URL_SAFE_NO_PAD.encode(it)));
    check(&payload(b""));
    check(&payload(b"[]"));
    check(&payload(b"null"));
    check(&payload(b"\xff"));
    check(&payload(br#"{"exp":32503680000,"exp":1}"#));
    check(&payload(br#"{"exp":1e999}"#));
    check(&key.signed("eyJhbGciOiJFUzI1NiJ9.e30=".to_owned()));
    check(&key.signed("eyJhbGciOiJFUzI1NiJ9.e31".to_owned())); // bits after the last byte
    check(&key.signed("eyJhbGciOiJFUzI1NiJ9.+/+/".to_owned())); // the other alphabet
}

#[test]
fn an_extension_that_must_be_understood_refuses() {
    let key = TestKey::new(Algorithm::ES256);
    for crit in [json!(["b64"]), json!(["exp"]), json!([]), json!(null), json!("b64")] {
        let token =
            key.token_with(&json!({ "alg": "ES256", "crit": crit, "b64": false, "exp": 1 }), &good_claims());
        assert_eq!(result(&token, &key.keys, &wanted()), Err(Reason::Malformed), "{crit}");
        assert_eq!(peek(&token), Err(Reason::Malformed), "{crit}");
    }
}

#[test]
fn a_token_has_at_most_16_kib() {
    let key = TestKey::new(Algorithm::HS256);
    let token = |n: usize| key.token(&json!({ "exp": NOW + 60.0, "a": "a".repeat(n) }));
    let longest = (0..).find(|n| token(12_000 + n).len() > 16 * 1024).expect("there is one");
    assert_eq!(result(&token(12_000 + longest - 1), &key.keys, &wanted()), Ok(()));
    assert_eq!(result(&token(12_000 + longest), &key.keys, &wanted()), Err(Reason::Malformed));
    assert_eq!(peek(&token(12_000 + longest)), Err(Reason::Malformed));
}

#[test]
fn no_mutation_of_a_token_verifies_or_panics() {
    const N: usize = 10_000;
    let mut random = Random(0x5eed);
    for algorithm in [Algorithm::HS256, Algorithm::ES256, Algorithm::EdDSA, Algorithm::RS256] {
        let key = TestKey::new(algorithm);
        let token = key.token_with(&json!({ "alg": algorithm.as_str(), "kid": "a" }), &good_claims());
        assert_eq!(result(&token, &key.keys, &wanted()), Ok(()));
        for _ in 0..N {
            let mut bytes = token.clone().into_bytes();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                let next = (at + 1) % bytes.len();
                match random.below(6) {
                    0 => bytes[at] ^= 1 << random.below(7),
                    1 => bytes[at] = BASE64URL[random.below(64)],
                    2 => bytes.insert(at, BASE64URL[random.below(64)]),
                    3 => drop(bytes.remove(at)),
                    4 => bytes.swap(at, next),
                    _ => bytes.truncate(at.max(8)),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            if text != token {
                assert!(verify(&text, &key.keys, &wanted()).is_err(), "{text}");
            }
        }
    }
}

#[test]
fn no_mutation_of_keys_panics() {
    let mut random = Random(0x5eed);
    let fixture: Value = serde_json::from_str(PYJWT).expect("it is JSON");
    let jwks = fixture["jwks"].to_string();
    let mutated = |from: &[u8], random: &mut Random| {
        let mut bytes = from.to_vec();
        let at = random.below(bytes.len());
        bytes[at] = random.below(256) as u8;
        bytes
    };
    let token = fixture["tokens"]["ES256"].as_str().expect("it is text");
    for _ in 0..10_000 {
        if let Ok(keys) = KeySet::from_jwks(&mutated(jwks.as_bytes(), &mut random)) {
            assert!(keys.len() + keys.n_skipped() == 4);
            result(token, &keys, &wanted()).ok();
        }
    }
    for text in [RSA_PUBLIC, RSA_PUBLIC_PKCS1, P256_PUBLIC, P384_PUBLIC, ED25519_PUBLIC] {
        let block = pem::parse(text).expect("openssl wrote it");
        for _ in 0..2_000 {
            let text = String::from_utf8(mutated(text.as_bytes(), &mut random));
            assert!(
                text.is_err() || text.is_ok_and(|it| KeySet::from_pem(&it).map_or(0, |it| it.len()) <= 1)
            );

            let mut der = mutated(block.contents(), &mut random);
            der.truncate(random.below(2 * der.len()));
            let text = pem::encode(&pem::Pem::new(block.tag(), der));
            assert!(KeySet::from_pem(&text).map_or(0, |it| it.len()) <= 1);
        }
    }
}

/// Numbers that are the same in each run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

// ---- claims ----

#[test]
fn claims_are_checked() {
    let key = TestKey::new(Algorithm::HS256);
    let check = |claims: Value, wanted: Verification, expected: Result<(), Reason>| {
        assert_eq!(result(&key.token(&claims), &key.keys, &wanted), expected, "{claims} {wanted:?}");
    };
    let exp = NOW + 60.0;
    let some = |list: &[&str]| Some(list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());

    let of = |list| Verification { issuers: some(list), ..wanted() };
    check(json!({ "exp": exp, "iss": "a" }), of(&["a"]), Ok(()));
    check(json!({ "exp": exp, "iss": "a" }), of(&["b", "a"]), Ok(()));
    check(json!({ "exp": exp, "iss": "a/" }), of(&["a"]), Err(Reason::Issuer));
    check(json!({ "exp": exp, "iss": ["a"] }), of(&["a"]), Err(Reason::Issuer));
    check(json!({ "exp": exp, "iss": null }), of(&["a"]), Err(Reason::Issuer));
    check(json!({ "exp": exp }), of(&["a"]), Err(Reason::Issuer));
    check(json!({ "exp": exp, "iss": "a" }), of(&[]), Err(Reason::Issuer));

    let for_one = |list| Verification { audiences: some(list), ..wanted() };
    check(json!({ "exp": exp, "aud": "a" }), for_one(&["a"]), Ok(()));
    check(json!({ "exp": exp, "aud": ["b", "a"] }), for_one(&["c", "a"]), Ok(()));
    check(json!({ "exp": exp, "aud": ["b", 7, "a"] }), for_one(&["a"]), Ok(()));
    check(json!({ "exp": exp, "aud": "ab" }), for_one(&["a"]), Err(Reason::Audience));
    check(json!({ "exp": exp, "aud": [] }), for_one(&["a"]), Err(Reason::Audience));
    check(json!({ "exp": exp, "aud": { "a": "a" } }), for_one(&["a"]), Err(Reason::Audience));
    check(json!({ "exp": exp, "aud": [["a"]] }), for_one(&["a"]), Err(Reason::Audience));
    check(json!({ "exp": exp }), for_one(&["a"]), Err(Reason::Audience));

    let requiring = |list: &[&str]| Verification { required: some(list).unwrap_or_default(), ..wanted() };
    check(json!({ "exp": exp, "sub": "ada" }), requiring(&["sub"]), Ok(()));
    check(json!({ "exp": exp, "sub": false }), requiring(&["sub"]), Ok(()));
    check(json!({ "exp": exp, "sub": null }), requiring(&["sub"]), Err(Reason::Claim));
    check(json!({ "exp": exp, "sub": "ada" }), requiring(&["sub", "scope"]), Err(Reason::Claim));

    check(json!({}), wanted(), Err(Reason::Claim));
    check(json!({}), Verification { exp_required: false, ..wanted() }, Ok(()));
    check(json!({ "exp": 1 }), Verification { exp_required: false, ..wanted() }, Err(Reason::Expired));
}

#[test]
fn a_time_must_be_a_number() {
    let key = TestKey::new(Algorithm::HS256);
    for name in ["exp", "nbf", "iat"] {
        for value in [json!("1700000000"), json!(true), json!([1]), json!({}), json!(null)] {
            let mut claims = good_claims();
            claims[name] = value;
            assert_eq!(result(&key.token(&claims), &key.keys, &wanted()), Err(Reason::Claim), "{claims}");
        }
    }
}

#[test]
fn a_token_is_valid_from_nbf_until_just_before_exp() {
    let key = TestKey::new(Algorithm::HS256);
    let check = |claims: Value, leeway: f64, now: f64, expected: Result<(), Reason>| {
        let wanted = Verification { leeway, now, exp_required: false, ..wanted() };
        assert_eq!(result(&key.token(&claims), &key.keys, &wanted), expected, "{claims} at {now} ± {leeway}");
    };
    check(json!({ "exp": 1000 }), 0.0, 999.999, Ok(()));
    check(json!({ "exp": 1000 }), 0.0, 1000.0, Err(Reason::Expired));
    check(json!({ "exp": 1000 }), 30.0, 1029.999, Ok(()));
    check(json!({ "exp": 1000 }), 30.0, 1030.0, Err(Reason::Expired));
    check(json!({ "exp": 1000.5 }), 0.0, 1000.25, Ok(()));
    check(json!({ "exp": -1 }), 0.0, 0.0, Err(Reason::Expired));
    check(json!({ "exp": 1e308 }), 1e308, 1000.0, Ok(()));
    check(json!({ "exp": u64::MAX }), 0.0, 1000.0, Ok(()));

    check(json!({ "nbf": 1000 }), 0.0, 999.999, Err(Reason::NotYetValid));
    check(json!({ "nbf": 1000 }), 0.0, 1000.0, Ok(()));
    check(json!({ "nbf": 1000 }), 30.0, 969.999, Err(Reason::NotYetValid));
    check(json!({ "nbf": 1000 }), 30.0, 970.0, Ok(()));
    check(json!({ "iat": 2000 }), 0.0, 1000.0, Ok(()));

    // A leeway or a time that makes no sense opens nothing.
    check(json!({ "exp": 1000 }), f64::INFINITY, 1000.0, Err(Reason::Expired));
    check(json!({ "exp": 1000 }), f64::NAN, 1000.0, Err(Reason::Expired));
    check(json!({ "exp": 1000 }), -10.0, 999.0, Ok(()));
    check(json!({ "exp": 1000 }), 0.0, f64::NAN, Err(Reason::Expired));
    check(json!({ "nbf": 1000 }), 0.0, f64::NAN, Err(Reason::NotYetValid));
}

// ---- keys ----

#[test]
fn pem_text_of_each_kind_is_read() {
    let check = |text: &str, expected: Result<usize, KeyError>| {
        assert_eq!(KeySet::from_pem(text).map(|it| it.len()), expected, "{text}");
    };
    for text in [RSA_PUBLIC, RSA_PUBLIC_PKCS1, P256_PUBLIC, P384_PUBLIC, ED25519_PUBLIC] {
        check(text, Ok(1));
        check(&text.replace('\n', "\r\n"), Ok(1));
        check(&format!("a comment\n{text}\n{text}"), Ok(2));
    }
    check(RSA_PRIVATE, Err(KeyError::NotPublic));
    check(&RSA_PUBLIC.replace("PUBLIC KEY", "CERTIFICATE"), Err(KeyError::NotPublic));
    check(RSA_PUBLIC_1024, Err(KeyError::Unsupported));
    check(P521_PUBLIC, Err(KeyError::Unsupported));
    check(&RSA_PUBLIC.replace("PUBLIC KEY", "RSA PUBLIC KEY"), Err(KeyError::Unsupported));
    check("", Err(KeyError::NotPem));
    check("a secret", Err(KeyError::NotPem));
    check("-----BEGIN PUBLIC KEY-----\n%\n-----END PUBLIC KEY-----\n", Err(KeyError::NotPem));
    check(&ED25519_PUBLIC.repeat(101), Err(KeyError::TooLarge));
    check(&"a".repeat(256 * 1024 + 1), Err(KeyError::TooLarge));

    let token = TestKey::new(Algorithm::RS512).token(&good_claims());
    assert_eq!(result(&token, &KeySet::from_pem(RSA_PUBLIC_PKCS1).expect("it is good"), &wanted()), Ok(()));
}

#[test]
fn a_secret_has_at_least_32_bytes() {
    assert_eq!(KeySet::secret(&[0; 31]).map(|it| it.len()), Err(KeyError::ShortSecret));
    assert_eq!(KeySet::secret(&[0; 32]).map(|it| it.len()), Ok(1));
    assert!(!format!("{:?}", KeySet::secret(SECRET)).contains("0123"));
}

#[test]
fn what_cannot_be_used_of_a_set_is_skipped_and_counted() {
    let fixture: Value = serde_json::from_str(PYJWT).expect("it is JSON");
    let [rsa, p256, ed] = [0, 1, 3].map(|n| fixture["jwks"]["keys"][n].clone());
    let with = |jwk: &Value, name: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[name] = value;
        jwk
    };
    let check = |jwk: Value, is_used: bool| {
        let keys = set(&[jwk.clone(), ed.clone()]);
        let expected = if is_used { (2, 0) } else { (1, 1) };
        assert_eq!((keys.len(), keys.n_skipped()), expected, "{jwk}");
    };
    check(rsa.clone(), true);
    check(with(&rsa, "use", json!("sig")), true);
    check(with(&rsa, "use", json!("enc")), false);
    check(with(&rsa, "key_ops", json!(["encrypt"])), false);
    check(with(&rsa, "kty", json!("RSB")), false);
    check(with(&rsa, "kid", json!(7)), false);
    check(with(&rsa, "d", json!("AQAB")), false);
    check(with(&rsa, "n", json!("AQAB")), false);
    check(with(&rsa, "n", json!(URL_SAFE_NO_PAD.encode([0xff; 255]))), false);
    check(with(&rsa, "n", json!(URL_SAFE_NO_PAD.encode([0xff; 256]))), true);
    check(with(&rsa, "n", json!(URL_SAFE_NO_PAD.encode([vec![0x7f], vec![0xff; 255]].concat()))), false);
    check(with(&rsa, "n", json!(URL_SAFE_NO_PAD.encode([vec![0], vec![0xff; 256]].concat()))), true);
    check(with(&rsa, "n", json!(URL_SAFE_NO_PAD.encode([0xff; 1024]))), true);
    check(with(&rsa, "n", json!(URL_SAFE_NO_PAD.encode([0xff; 1025]))), false);
    check(with(&rsa, "n", json!("")), false);
    check(with(&rsa, "e", json!("")), false);
    check(with(&rsa, "e", json!("AA")), false);
    check(with(&rsa, "e", json!("AQ")), false); // 1: each message would be its own signature
    check(with(&rsa, "e", json!("Aw")), true); // 3
    check(with(&rsa, "e", json!(URL_SAFE_NO_PAD.encode([0xff; 5]))), false);
    check(with(&p256, "crv", json!("P-521")), false);
    check(with(&p256, "crv", json!("P-384")), false);
    check(with(&p256, "x", json!("AQAB")), false);
    check(with(&p256, "x", json!(7)), false);
    check(with(&ed, "crv", json!("X25519")), false);
    check(with(&ed, "x", json!("AQAB")), false);
    check(json!(null), false);
    check(json!([]), false);
    check(json!({}), false);

    // A point that is not on the curve verifies nothing.
    let keys = set(&[with(&p256, "x", p256["y"].clone())]);
    let token = fixture["tokens"]["ES256"].as_str().expect("it is text");
    assert_eq!(result(token, &keys, &wanted()), Err(Reason::Signature));
}

#[test]
fn a_set_is_bounded_and_an_object_with_keys() {
    let check = |text: &str, expected: Result<(usize, usize), KeyError>| {
        let result = KeySet::from_jwks(text.as_bytes()).map(|it| (it.len(), it.n_skipped()));
        assert_eq!(result, expected);
    };
    check(r#"{"keys":[]}"#, Ok((0, 0)));
    check(r#"{"keys":{}}"#, Err(KeyError::NotASet));
    check(r#"{"kty":"RSA"}"#, Err(KeyError::NotASet));
    check("[]", Err(KeyError::NotASet));
    check("", Err(KeyError::NotASet));
    check(RSA_PUBLIC, Err(KeyError::NotASet));
    check(&format!(r#"{{"keys":[],"x":"{}"}}"#, "x".repeat(256 * 1024)), Err(KeyError::TooLarge));
    let jwk = Signer::generate(Algorithm::EdDSA).expect("random").jwk("a");
    check(&json!({ "keys": vec![jwk; 103] }).to_string(), Ok((100, 3)));
}

#[test]
fn a_signer_has_the_keys_that_it_can_make() {
    assert_eq!(Signer::generate(Algorithm::RS256).err(), Some(SignError::Algorithm));
    assert_eq!(Signer::hs(SECRET).jwk("a"), Value::Null);
    let claims = good_claims();
    let token =
        Signer::hs(SECRET).sign(claims.as_object().expect("it is one"), Some("a")).expect("HMAC cannot fail");
    assert_eq!(result(&token, &KeySet::secret(SECRET).expect("32 bytes"), &wanted()), Ok(()));
    assert_eq!(peek(&token), Ok(Peek { kid: Some("a".to_owned()), algorithm: Algorithm::HS256 }));
}
