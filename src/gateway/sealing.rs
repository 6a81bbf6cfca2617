//! Messages that only a replica with the same key can make or read, and the fields that they consist of.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};

/// Seals with AES-256-GCM and a random nonce, for one purpose.
#[derive(Clone)]
pub(crate) struct Sealing {
    key: LessSafeKey,
}

/// The fields of a message, in turn; `None` where it ends too early.
pub(crate) struct Fields<'a>(&'a [u8]);

impl Sealing {
    /// With a key that is used as it is.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the algorithm's length");
        Sealing { key: LessSafeKey::new(key) }
    }

    /// With a key made of a secret. The purpose is part of it, so that one secret serves several.
    pub(crate) fn derived(purpose: &[u8], secret: &str) -> Self {
        let material = [purpose, secret.as_bytes()].concat();
        Sealing::new(digest(&SHA256, &material).as_ref().try_into().expect("a hash has 32 bytes"))
    }

    /// Seals a message for a context, without which it cannot be opened.
    pub(crate) fn seal(&self, context: &[u8], mut message: Vec<u8>) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random(); // of a generator that is fit for keys, without a system call for each
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut message)
            .expect("a message is shorter than the algorithm's limit");
        [&nonce[..], &message].concat()
    }

    /// The message, unless it was forged, broken, or sealed for another context or by another key.
    pub(crate) fn open<'a>(&self, context: &[u8], sealed: &'a mut [u8]) -> Option<Fields<'a>> {
        let (nonce, sealed) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let message: &[u8] = self.key.open_in_place(nonce, Aad::from(context), sealed).ok()?;
        Some(Fields(message))
    }
}

impl<'a> Fields<'a> {
    /// As many bytes.
    pub(crate) fn exactly<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    /// What [`put`] wrote.
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = u32::from_be_bytes(self.exactly()?);
        let (head, tail) = self.0.split_at_checked(len as usize)?;
        self.0 = tail;
        Some(head)
    }

    /// The same as text.
    pub(crate) fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

/// Writes bytes with their length before them.
///
/// # Panics
/// With 4 GiB or more; nothing here is as long.
pub(crate) fn put(message: &mut Vec<u8>, bytes: &[u8]) {
    message.extend_from_slice(&u32::try_from(bytes.len()).expect("less than 4 GiB").to_be_bytes());
    message.extend_from_slice(bytes);
}
