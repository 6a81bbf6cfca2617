//! The STUN credentials that the worker posts before a session.

use serde_json::Value;

use crate::secret::Secret;

/// Where the STUN server is, and what it wants to hear. Kept in memory alone, and never printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Creds {
    /// Name or address.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) username: String,
    pub(crate) password: Secret,
}

/// Largest body in bytes.
pub(crate) const LARGEST: usize = 4 << 10;

/// Longest user name (RFC 8489 section 14.3) and password.
const LONGEST: usize = 512;

impl Creds {
    /// Reads the body of `POST /v1/streaming/creds`. Unknown fields are ignored: newer workers send more. The error is
    /// a sentence that names the field and never the value.
    pub(crate) fn parse(body: &[u8]) -> Result<Creds, String> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|it| format!("not JSON at line {}, column {}", it.line(), it.column()))?;
        let Value::Object(fields) = value else { return Err("expected an object".into()) };
        let text = |name: &str, least: usize, most: usize| match fields.get(name) {
            Some(Value::String(it))
                if (least..=most).contains(&it.len()) && !it.contains(char::is_control) =>
            {
                Ok(it.clone())
            }
            Some(Value::String(_)) => Err(format!("{name}: expected {least} to {most} printable characters")),
            Some(_) => Err(format!("{name}: expected a string")),
            None => Err(format!("{name}: missing")),
        };
        let host = text("stunIp", 1, 253)?;
        if !host.bytes().all(|it| it.is_ascii_alphanumeric() || b"-._:".contains(&it)) {
            return Err("stunIp: expected an address or a host name".into());
        }
        let port = match fields.get("stunPort") {
            Some(Value::Number(it)) => it.as_u64().and_then(|it| u16::try_from(it).ok()).filter(|it| *it > 0),
            Some(_) => return Err("stunPort: expected a number".into()),
            None => return Err("stunPort: missing".into()),
        };
        let port = port.ok_or("stunPort: expected a port from 1 to 65535")?;
        Ok(Creds {
            host,
            port,
            username: text("username", 1, LONGEST)?,
            password: Secret::new(text("password", 1, LONGEST)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_and_what_is_new_in_them_is_ignored() {
        let body = br#"{"stunIp":"10.0.0.1","stunPort":3478,"username":"u","password":"p","privateSharedPort":5004,"turn":{}}"#;
        let expected =
            Creds { host: "10.0.0.1".into(), port: 3478, username: "u".into(), password: Secret::new("p") };
        assert_eq!(Creds::parse(body), Ok(expected));
    }

    #[test]
    fn credentials_that_are_none_are_refused_without_being_repeated() {
        let check = |body: &str, expected: &str| {
            let error = Creds::parse(body.as_bytes()).expect_err(body);
            assert!(error.contains(expected), "{body}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        };
        check("", "not JSON at line 1");
        check("[]", "expected an object");
        check(r#"{"stunPort":3478,"username":"u","password":"hunter2"}"#, "stunIp: missing");
        check(
            r#"{"stunIp":7,"stunPort":3478,"username":"u","password":"hunter2"}"#,
            "stunIp: expected a string",
        );
        check(
            r#"{"stunIp":"a b","stunPort":3478,"username":"u","password":"hunter2"}"#,
            "stunIp: expected an address",
        );
        check(
            r#"{"stunIp":"h","stunPort":"3478","username":"u","password":"hunter2"}"#,
            "stunPort: expected a number",
        );
        for port in ["0", "65536", "-1", "3.5", "1e3"] {
            check(
                &format!(r#"{{"stunIp":"h","stunPort":{port},"username":"u","password":"hunter2"}}"#),
                "stunPort: expected a port",
            );
        }
        check(r#"{"stunIp":"h","stunPort":1,"username":"","password":"hunter2"}"#, "username: expected 1");
        check(
            &format!(
                r#"{{"stunIp":"h","stunPort":1,"username":"{}","password":"hunter2"}}"#,
                "u".repeat(513)
            ),
            "username",
        );
        check(
            r#"{"stunIp":"h","stunPort":1,"username":"u","password":"hunter2\u0000"}"#,
            "password: expected",
        );
        check(r#"{"stunIp":"h","stunPort":1,"username":"u"}"#, "password: missing");
    }
}
