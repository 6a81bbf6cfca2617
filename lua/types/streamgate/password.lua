---@meta streamgate.password
-- Written by `make docs` from src/lua/api; do not edit.

---Passwords against what was kept of them: bcrypt (`$2b$`, as `htpasswd -B` makes it) and argon2id (`$argon2id$`). They are slow on purpose, so this is done beside the worker; remember for a while who was right.
---@class streamgate.Password
local password = {}

---Whether a password is the one of which this hash was kept. A hash of another form is an error. As many as there are
---cores are looked at at the same time, the others wait.
---@param password string
---@param hash string
---@return boolean
function password.verify(password, hash) end

---True when `verify` takes this hash; nil and a reason when not. For `configure`.
---@param hash string
---@return boolean?
---@return string?
function password.check_hash(hash) end

return password
