//! A value that never prints itself.

use zeroize::Zeroizing;

/// A secret string: it has no `Display`, its `Debug` shows nothing, and its memory is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a secret in; from here on it leaves only through [`Secret::expose`].
    pub fn new(value: impl Into<String>) -> Self {
        Secret(Zeroizing::new(value.into()))
    }

    /// The value itself. Each caller must know why it needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not depend on where the two differ.
    pub fn matches(&self, presented: &str) -> bool {
        equal(self.0.as_bytes(), presented.as_bytes())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Compares two byte strings in a time that depends on neither's content.
///
/// Both are hashed first, so the lengths leak nothing either.
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    use subtle::ConstantTimeEq;
    let digest = |it| ring::digest::digest(&ring::digest::SHA256, it);
    digest(a).as_ref().ct_eq(digest(b).as_ref()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_nothing_of_itself() {
        let secret = Secret::new("nvapi-0123456789");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(secret.matches("nvapi-0123456789"));
        assert!(!secret.matches("nvapi-012345678"));
    }
}
