---@meta streamgate.crypto
-- Written by `make docs` from src/lua/api; do not edit.

---Digests, signatures with a shared secret, sealed texts. Digests are bytes: show them with `hex` or `base64`.
---@class streamgate.Crypto
local crypto = {}

---SHA-1, for old protocols alone.
---@param bytes string
---@return string
function crypto.sha1(bytes) end

---SHA-256.
---@param bytes string
---@return string
function crypto.sha256(bytes) end

---SHA-384.
---@param bytes string
---@return string
function crypto.sha384(bytes) end

---SHA-512.
---@param bytes string
---@return string
function crypto.sha512(bytes) end

---HMAC with SHA-1, for old protocols alone.
---@param key string
---@param bytes string
---@return string
function crypto.hmac_sha1(key, bytes) end

---HMAC with SHA-256 (RFC 2104).
---@param key string
---@param bytes string
---@return string
function crypto.hmac_sha256(key, bytes) end

---HMAC with SHA-384.
---@param key string
---@param bytes string
---@return string
function crypto.hmac_sha384(key, bytes) end

---HMAC with SHA-512.
---@param key string
---@param bytes string
---@return string
function crypto.hmac_sha512(key, bytes) end

---Whether two strings are equal. How long it takes tells nothing but their lengths: for secrets.
---@param a string
---@param b string
---@return boolean
function crypto.equal(a, b) end

---Bytes that nobody can guess, at most 1024.
---@param n integer
---@return string
function crypto.random(n) end

---Seals a text so that only who has the key can read it, and nobody can change it (AES-256-GCM). What it gives may stand
---in a URL or a cookie. The key has 16 bytes or more, the text at most 64 KiB.
---@param key string
---@param text string
---@return string
function crypto.seal(key, text) end

---The text that was sealed with this key; nil when it was not, or was changed.
---@param key string
---@param sealed string
---@return string?
function crypto.open(key, sealed) end

return crypto
