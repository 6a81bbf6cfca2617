---@meta streamgate.cookie
-- Written by `make docs` from src/lua/api; do not edit.

---Cookies for the browser (RFC 6265).
---@class streamgate.Cookie
local cookie = {}

---The value of a `Set-Cookie` header. Options are `path` (`/`), `domain`, `max_age` in seconds, `secure`, `http_only`
---(true) and `same_site` (`Lax`).
---@param name string
---@param value string
---@param options? table
---@return string
function cookie.format(name, value, options) end

return cookie
