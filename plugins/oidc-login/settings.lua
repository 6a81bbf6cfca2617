--- settings.lua: checks the settings, and works out what follows from them.

local crypto = require "streamgate.crypto"

local M = {}

-- Asymmetric ones alone: with HS256 the client's secret would sign, and `none` proves nothing.
local ALGORITHMS = {
  RS256 = true,
  RS384 = true,
  RS512 = true,
  PS256 = true,
  PS384 = true,
  PS512 = true,
  ES256 = true,
  ES384 = true,
  EdDSA = true,
}

-- What the authorization request says itself.
local OWN_PARAMETERS = {
  "response_type",
  "response_mode",
  "client_id",
  "redirect_uri",
  "scope",
  "state",
  "nonce",
  "code_challenge",
  "code_challenge_method",
  "request",
  "request_uri",
}

-- Below it a key can be guessed.
local SHORTEST_KEY = 32

local function refuse(message, ...)
  error(message:format(...), 0)
end

--- A path of the gateway's own, without anything that would have to be escaped in HTML or a URL.
local function check_path(name, path)
  if not path:find "^/[%w%-%._~/]+$" or path:find("//", 1, true) or #path > 256 then
    refuse("%s: expected a path of its own, such as /oidc/login", name)
  end
end

--- The parts of the redirect URI: scheme, origin and path. The origin is written as browsers do.
local function check_redirect(text)
  local scheme, host, path = text:match "^(https?)://([%w%.%-:%[%]]+)(/[^?#]*)$"
  if not scheme then
    refuse "redirect_uri: expected a URL without query, such as https://stream.example.com/oidc/callback"
  end
  check_path("redirect_uri", path)
  host = host:lower():gsub(scheme == "https" and ":443$" or ":80$", "")
  return scheme, scheme .. "://" .. host, path
end

--- The settings with what follows from them; raises what is wrong, for whoever wrote them.
function M.check(written)
  local conf = {}
  for name, value in pairs(written) do
    conf[name] = value
  end

  local scheme, origin, path = check_redirect(conf.redirect_uri)
  conf.is_secure = scheme == "https"
  conf.origin = origin
  conf.callback_path = path
  check_path("login_path", conf.login_path)
  check_path("logout_path", conf.logout_path)
  if conf.login_path == conf.logout_path or conf.login_path == path or conf.logout_path == path then
    refuse "redirect_uri, login_path and logout_path must be different paths"
  end

  if conf.client_auth == "none" and conf.client_secret then
    refuse 'client_secret: not used with client_auth = "none"; remove one'
  end
  if conf.client_auth ~= "none" and not conf.client_secret then
    refuse('client_secret: missing; %s needs it, and a client without one has client_auth = "none"', conf.client_auth)
  end
  if #conf.cookie_key < SHORTEST_KEY then
    refuse("cookie_key: expected at least %d characters: openssl rand -base64 32", SHORTEST_KEY)
  end
  if not conf.cookie_name:find "^[%w_%-]+$" or #conf.cookie_name > 64 then
    refuse "cookie_name: expected letters, digits, `-` and `_`, at most 64"
  end

  if #conf.algorithms == 0 then
    refuse "algorithms: expected one at least"
  end
  for _, name in ipairs(conf.algorithms) do
    if not ALGORITHMS[name] then
      refuse("algorithms: %q is not one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA", name)
    end
  end
  for _, name in ipairs(OWN_PARAMETERS) do
    if conf.parameters[name] then
      refuse("parameters: %s is the plugin's to say", name)
    end
  end
  for _, name in ipairs(conf.claims) do
    if name == "id" then
      refuse "claims: `id` is the principal's id, which `id_claim` chooses"
    end
  end
  if conf.after_logout and not conf.after_logout:find "^https?://[^/%s]+[\x21-\x7e]*$" then
    refuse "after_logout: expected a URL, such as https://www.example.com/"
  end

  local scopes, has_openid = {}, false
  for _, scope in ipairs(conf.scopes) do
    has_openid = has_openid or scope == "openid"
    scopes[#scopes + 1] = scope
  end
  if not has_openid then
    table.insert(scopes, 1, "openid") -- without it there is no ID token
  end
  conf.scope = table.concat(scopes, " ")

  -- One key for each use, provider and client: a cookie of one is worth nothing as another.
  local use = ("\0%s\0%s"):format(conf.issuer, conf.client_id)
  conf.session_key = crypto.hmac_sha256(conf.cookie_key, "streamgate oidc-login session 1" .. use)
  conf.attempt_key = crypto.hmac_sha256(conf.cookie_key, "streamgate oidc-login attempt 1" .. use)
  local prefix = conf.is_secure and "__Host-" or ""
  conf.session_name = prefix .. conf.cookie_name
  conf.attempt_prefix = prefix .. conf.cookie_name .. "-login-"
  return conf
end

return M
