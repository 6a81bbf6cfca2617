--- plugin.lua: admits a request only when it carries a JSON Web Token that was signed for this gateway.

local json = require "streamgate.json"
local jwt = require "streamgate.jwt"
local log = require "streamgate.log"
local metrics = require "streamgate.metrics"
local place = require "streamgate.place"
local time = require "streamgate.time"
local token = require "streamgate.token"

local M = {}

local rejections = metrics.counter("rejections_total", "Requests refused and sessions ended, by reason.", { "reason" })

local LONGEST_TOKEN = 16384 -- bytes
local LONGEST_ID = 256 -- bytes: the longest id of a principal
local LONGEST_ATTRIBUTE = 1024 -- bytes
local MOST_ATTRIBUTES = 32 -- when no claims are listed: a session keeps them as long as it lasts
local MOST_ITEMS = 128 -- of a list

local ASYMMETRIC = { "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA" }
local SYMMETRIC = { "HS256", "HS384", "HS512" }

--- Claims that are no attributes: they belong to the token and not to whoever has it, or would be taken for what
--- the gateway itself says about a principal.
local no_attributes = {
  aud = true,
  exp = true,
  nbf = true,
  iat = true,
  jti = true,
  nonce = true,
  at_hash = true,
  c_hash = true,
  s_hash = true,
  id = true,
  functions = true,
  expires = true,
}

local function contains(list, item)
  for _, it in ipairs(list) do
    if it == item then
      return true
    end
  end
  return false
end

--- The keys, and the algorithms that go with them. One list never has both kinds: a public key would do as a secret.
local function read_keys(conf, options)
  local n_sources = 0
  for _, name in ipairs { "discover", "jwks_url", "keys", "secret" } do
    if conf[name] then
      options[name] = conf[name]
      n_sources = n_sources + 1
    end
  end
  if n_sources ~= 1 then
    error("give exactly one of `discover`, `jwks_url`, `keys` and `secret`", 0)
  end
  if conf.secret and #conf.secret < 32 then
    error("secret: at least 32 bytes, or it can be guessed (RFC 7518 section 3.2)", 0)
  end
  local fitting = conf.secret and SYMMETRIC or ASYMMETRIC
  options.algorithms = conf.algorithms or fitting
  if #options.algorithms == 0 then
    error("algorithms: name at least one", 0)
  end
  for _, name in ipairs(options.algorithms) do
    if not contains(fitting, name) then
      error(
        ("algorithms: `%s` does not go with this kind of key; there are %s"):format(name, table.concat(fitting, ", ")),
        0
      )
    end
  end
end

local function read_audience(audience)
  if #audience == 0 then
    error('audience: name at least one, or write ["*"] to take tokens for anybody', 0)
  end
  if contains(audience, "*") then
    return nil
  end
  return audience
end

--- `claim`, or `attribute=claim` for an attribute with another name.
local function read_attributes(list)
  local attributes = {}
  for idx, text in ipairs(list) do
    local name, claim = text:match "^([^=]+)=(.+)$"
    name, claim = name or text, claim or text
    if name == "" or name == "id" or name == "functions" or name == "expires" then
      error(('attributes: "%s" cannot be an attribute'):format(name), 0)
    end
    attributes[idx] = { name = name, claim = claim }
  end
  return attributes
end

function M.configure(conf)
  local places = place.parse_all(conf.from)
  for _, scope in ipairs(conf.scopes) do
    if scope == "" or scope:find "[^\x21-\x7e]" or scope:find '["\\]' then
      error(('scopes: "%s" is no scope (RFC 6749 section 3.3)'):format(scope), 0)
    end
  end
  if conf.issuer and #conf.issuer == 0 then
    error("issuer: an empty list would refuse everybody; leave it out", 0)
  end

  local options = { leeway = conf.leeway, issuer = conf.issuer, audience = read_audience(conf.audience) }
  read_keys(conf, options)

  local invalid = token.challenge(conf.realm, "invalid_token")
  local insufficient = token.challenge(conf.realm, "insufficient_scope")
  if #conf.scopes > 0 then
    insufficient = insufficient .. (', scope="%s"'):format(table.concat(conf.scopes, " "))
  end
  return {
    places = places,
    options = options,
    token_type = conf.token_type and conf.token_type:lower(),
    principal = conf.principal,
    attributes = conf.attributes and read_attributes(conf.attributes),
    functions = conf.functions,
    scopes = conf.scopes,
    claims = conf.claims,
    leeway = conf.leeway,
    challenges = { missing = token.challenge(conf.realm), invalid = invalid, insufficient = insufficient },
  }
end

--- A claim by its name or, where there is none of that name, by its path: `realm_access.roles`.
local function claim_of(claims, name)
  local value = claims[name]
  if value == nil then
    value = claims
    for part in name:gmatch "[^.]+" do
      value = type(value) == "table" and value[part] or nil
    end
  end
  if value ~= json.null then
    return value
  end
end

--- A claim as an attribute: a text, a number, a boolean, or a list of them; nil for anything else.
local function attribute(value)
  local kind = type(value)
  if kind == "string" then
    return #value <= LONGEST_ATTRIBUTE and value or nil
  elseif kind == "number" or kind == "boolean" then
    return value
  elseif kind == "table" then
    local items = {}
    for _, item in ipairs(value) do
      local plain = type(item) ~= "table" and attribute(item)
      if (plain or item == false) and #items < MOST_ITEMS then
        items[#items + 1] = plain
      end
    end
    return #items > 0 and items or nil
  end
end

--- The texts of a claim that is a list, or one text with spaces between them.
local function texts(value)
  local items = {}
  if type(value) == "string" then
    for item in value:gmatch "%S+" do
      items[#items + 1] = item
    end
  elseif type(value) == "table" then
    for _, item in ipairs(value) do
      if type(item) == "string" then
        items[#items + 1] = item
      end
    end
  end
  return items
end

--- Adds the claims that are attributes: the listed ones, or the first simple ones by name.
local function add_attributes(principal, claims, conf)
  if conf.attributes then
    for _, it in ipairs(conf.attributes) do
      principal[it.name] = attribute(claim_of(claims, it.claim))
    end
    return
  end
  local names = {}
  for name in pairs(claims) do
    if type(name) == "string" and name ~= "" and not no_attributes[name] then
      names[#names + 1] = name
    end
  end
  table.sort(names)
  local n_attributes = 0
  for _, name in ipairs(names) do
    local value = attribute(claims[name])
    if value ~= nil and n_attributes < MOST_ATTRIBUTES then
      principal[name] = value
      n_attributes = n_attributes + 1
    end
  end
end

local function is_id(text)
  return text ~= "" and text ~= "-" and #text <= LONGEST_ID and not text:find "%c" and not text:find "\xc2[\x80-\x9f]"
end

--- Who has the token; nil when it does not say.
local function principal_of(claims, conf)
  local id = claim_of(claims, conf.principal)
  if math.type(id) == "integer" then
    id = tostring(id)
  end
  if type(id) ~= "string" or not is_id(id) then
    return nil
  end
  local principal = {}
  add_attributes(principal, claims, conf)
  principal.id, principal.expires = id, claims.exp
  if conf.functions then
    principal.functions = texts(claim_of(claims, conf.functions)) -- a token that names none may use none
  end
  return principal
end

local function has_scopes(claims, scopes)
  local granted = texts(claims.scope) -- RFC 8693 section 4.2
  for _, scope in ipairs(texts(claims.scp)) do -- as some issuers call it
    granted[#granted + 1] = scope
  end
  for _, scope in ipairs(scopes) do
    if not contains(granted, scope) then
      return false
    end
  end
  return true
end

local function has_claims(claims, wanted)
  for name, value in pairs(wanted) do
    local found = claim_of(claims, name)
    local has = found ~= nil and value == "*"
    for _, it in ipairs(type(found) == "table" and found or { found }) do
      has = has or type(it) ~= "table" and tostring(it) == value
    end
    if not has then
      return false
    end
  end
  return true
end

local function is_of_type(header, wanted)
  local found = type(header) == "table" and type(header.typ) == "string" and header.typ:lower() or ""
  return found:gsub("^application/", "") == wanted:gsub("^application/", "")
end

--- The claims of a token; nil and why not.
local function verify(presented, conf)
  if #presented > LONGEST_TOKEN or not presented:find "^[%w_-]+%.[%w_-]+%.[%w_-]+$" then
    return nil, "malformed"
  end
  local claims, other = jwt.verify(presented, conf.options)
  if not claims then
    return nil, other
  end
  if conf.token_type and not is_of_type(other, conf.token_type) then
    return nil, "type"
  end
  if type(claims.exp) ~= "number" or claims.exp ~= claims.exp or math.abs(claims.exp) == math.huge then
    return nil, "claim"
  end
  return claims
end

local function refuse(request, reason, conf)
  rejections:add(1, reason)
  if reason == "missing" then
    return request:reject("auth.missing_token", { ["www-authenticate"] = conf.challenges.missing })
  elseif reason == "keys_unavailable" then
    return request:reject("auth.keys_unavailable", { ["retry-after"] = "5" })
  elseif reason == "scope" or reason == "refused" then
    local code = reason == "scope" and "auth.insufficient_scope" or "auth.forbidden"
    return request:reject(code, { ["www-authenticate"] = conf.challenges.insufficient })
  end
  local code = reason == "expired" and "auth.expired_token" or "auth.unknown_token"
  log.debug(("%s: the token is refused: %s"):format(request:id(), reason))
  return request:reject(code, { ["www-authenticate"] = conf.challenges.invalid })
end

--- @param request streamgate.Request
function M.authenticate(request, conf)
  local presented = place.read(request, conf.places)
  if not presented then
    return refuse(request, "missing", conf)
  end
  local claims, reason = verify(presented, conf)
  if not claims then
    return refuse(request, reason, conf)
  end
  local principal = principal_of(claims, conf)
  if not principal then
    return refuse(request, "principal", conf)
  end
  if not has_scopes(claims, conf.scopes) then
    return refuse(request, "scope", conf)
  end
  if not has_claims(claims, conf.claims) then
    return refuse(request, "refused", conf)
  end
  request:set("principal", principal)
  request:set("jwt-auth", claims.exp)
end

function M.upstream_request(_, upstream, conf)
  place.hide(upstream, conf.places)
end

--- Ends a session whose token has expired. A browser that comes back with a fresh token prolongs it.
--- @param request streamgate.Request
function M.session_tick(request, _, conf)
  local expires = request:get "jwt-auth"
  if expires and expires + conf.leeway <= time.now() then
    rejections:add(1, "expired")
    return request:reject "auth.expired_token"
  end
end

return M
