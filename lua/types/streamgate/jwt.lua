---@meta streamgate.jwt
-- Written by `make docs` from src/lua/api; do not edit.

---Signed tokens (RFC 7519).
---@class streamgate.Jwt
local jwt = {}

---How many keys a JWK Set or PEM has that `verify` can use; nil and a reason when it is neither. For `configure`.
---@param text string
---@return integer?
---@return string?
function jwt.check_keys(text) end

---The claims of a token and its header; nil and a reason when it is refused: `malformed`, `algorithm`, `unknown_key`,
---`signature`, `expired`, `not_yet_valid`, `issuer`, `audience`, `claim` or `keys_unavailable`.
---
---`options` have `algorithms`, the names that are accepted, and one source of keys: `secret` for HS256 and its like,
---`keys` (a JWK Set or PEM), `jwks_url`, or `discover`, the URL of an issuer. Besides: `issuer` and `audience`, each a
---string or several; `leeway` in seconds (30); `required`, names of claims that must be there; `allow_no_exp`. Keys are
---fetched when they are needed and kept; strangers cannot make it happen often.
---@param token string
---@param options table
---@return table?
---@return table|string
function jwt.verify(token, options) end

return jwt
