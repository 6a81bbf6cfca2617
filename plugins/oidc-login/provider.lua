--- provider.lua: what the gateway and the OpenID Connect provider say to each other.

local base64 = require "streamgate.base64"
local base64url = require "streamgate.base64url"
local crypto = require "streamgate.crypto"
local http = require "streamgate.http"
local jwt = require "streamgate.jwt"
local log = require "streamgate.log"
local oidc = require "streamgate.oidc"
local url = require "streamgate.url"

local M = {}

-- Providers' codes have some hundred characters, those of Azure some thousand.
local LONGEST_CODE = 4096

-- An ID token with many groups has some kilobytes.
local LONGEST_TOKEN = 16384

--- An endpoint of the discovery document. A provider that is reached by TLS cannot send secrets where there is none.
local function endpoint(conf, document, name)
  local text = document[name]
  if type(text) ~= "string" or not url.parse(text) or text:find "[^\x21-\x7e]" then
    return nil
  end
  if conf.issuer:find "^https:" and not text:find "^https:" then
    return nil
  end
  return text
end

local function with_query(target, parameters)
  return target .. (target:find("?", 1, true) and "&" or "?") .. url.query(parameters)
end

--- A word of the provider's for the log: nothing else of what it says gets there.
local function word(text)
  return type(text) == "string" and #text <= 64 and text:match "^[%w_]+$" or "?"
end

--- The discovery document, or nil when it cannot be had or lacks what a sign-in needs.
function M.discover(conf)
  local document, why = oidc.discover(conf.issuer)
  if not document then
    log.warn("The provider's discovery document cannot be had: " .. why)
    return nil
  end
  for _, name in ipairs { "authorization_endpoint", "token_endpoint" } do
    if not endpoint(conf, document, name) then
      log.error("The provider's discovery document has no usable " .. name)
      return nil
    end
  end
  return document
end

--- Where the browser goes to sign in.
function M.authorization_url(conf, document, attempt)
  local parameters = {}
  for name, value in pairs(conf.parameters) do
    parameters[name] = value
  end
  parameters.response_type = "code"
  parameters.client_id = conf.client_id
  parameters.redirect_uri = conf.redirect_uri
  parameters.scope = conf.scope
  parameters.state = attempt.state
  parameters.nonce = attempt.nonce
  parameters.code_challenge = base64url.encode(crypto.sha256(attempt.verifier))
  parameters.code_challenge_method = "S256"
  return with_query(endpoint(conf, document, "authorization_endpoint"), parameters)
end

--- Where the browser goes to sign out at the provider too (RP-Initiated Logout 1.0), when it has such a place.
function M.logout_url(conf, id_token)
  local document = oidc.discover(conf.issuer)
  local target = document and endpoint(conf, document, "end_session_endpoint")
  return target
    and with_query(target, {
      client_id = conf.client_id,
      id_token_hint = id_token,
      post_logout_redirect_uri = conf.after_logout,
    })
end

--- Changes a code for tokens: the token endpoint's answer, or nil and a code.
local function exchange(conf, document, attempt, code)
  local form = {
    grant_type = "authorization_code",
    code = code,
    redirect_uri = conf.redirect_uri,
    code_verifier = attempt.verifier,
  }
  local headers = { accept = "application/json" }
  if conf.client_auth == "client_secret_basic" then
    -- RFC 6749 section 2.3.1: both are encoded before they are joined.
    local joined = url.encode(conf.client_id) .. ":" .. url.encode(conf.client_secret)
    headers.authorization = "Basic " .. base64.encode(joined)
  else
    form.client_id = conf.client_id
    form.client_secret = conf.client_secret -- nil for a public client
  end

  local response, why = http.post(endpoint(conf, document, "token_endpoint"), { form = form, headers = headers })
  if not response then
    log.warn("The token endpoint did not answer: " .. why)
    return nil, "oidc.provider_away"
  end
  local answer = response:json()
  if response.status ~= 200 then
    local told = type(answer) == "table" and word(answer.error) or "?"
    log.warn(("The token endpoint answered %d, error %s."):format(response.status, told))
    return nil, response.status >= 500 and "oidc.provider_away" or "oidc.provider_refused"
  end
  if type(answer) ~= "table" or type(answer.id_token) ~= "string" or #answer.id_token > LONGEST_TOKEN then
    log.warn "The token endpoint's answer has no ID token."
    return nil, "oidc.token_invalid"
  end
  return answer
end

--- The claims of an ID token that was made for this attempt, or nil and a code (OpenID Connect Core 3.1.3.7).
local function verify(conf, attempt, id_token)
  local claims, why = jwt.verify(id_token, {
    algorithms = conf.algorithms,
    discover = conf.issuer,
    audience = conf.client_id,
    required = { "iss", "sub", "aud", "iat", "nonce" },
  })
  if not claims then
    log.warn("The ID token is refused: " .. why)
    return nil, why == "keys_unavailable" and "oidc.provider_away" or "oidc.token_invalid"
  end
  if type(claims.nonce) ~= "string" or not crypto.equal(claims.nonce, attempt.nonce) then
    log.warn "The ID token is refused: nonce"
    return nil, "oidc.token_invalid"
  end
  local is_for_others = type(claims.aud) == "table" and #claims.aud > 1
  if (is_for_others or claims.azp ~= nil) and claims.azp ~= conf.client_id then
    log.warn "The ID token is refused: azp"
    return nil, "oidc.token_invalid"
  end
  return claims
end

--- Adds the claims of the userinfo endpoint, or gives a code. What the ID token says is signed and stays.
local function add_userinfo(conf, document, claims, access_token)
  local target = endpoint(conf, document, "userinfo_endpoint")
  if not target or type(access_token) ~= "string" or access_token:find "[^\x21-\x7e]" then
    log.error "There is no userinfo endpoint, or no access token for it."
    return "oidc.token_invalid"
  end
  local headers = { accept = "application/json", authorization = "Bearer " .. access_token }
  local response, why = http.get(target, { headers = headers })
  if not response then
    log.warn("The userinfo endpoint did not answer: " .. why)
    return "oidc.provider_away"
  end
  local more = response.status == 200 and response:json()
  -- OpenID Connect Core 5.3.2: with another subject it is about somebody else.
  if type(more) ~= "table" or more.sub ~= claims.sub then
    log.warn(("The userinfo endpoint's answer %d is refused."):format(response.status))
    return "oidc.token_invalid"
  end
  for name, value in pairs(more) do
    if claims[name] == nil then
      claims[name] = value
    end
  end
end

--- What the provider sent the browser back with, changed for claims: they, nil and the ID token; or nil and a code.
function M.redeem(request, conf, attempt)
  local document = M.discover(conf)
  if not document then
    return nil, "oidc.provider_away"
  end
  local issuer = request:parameter "iss" -- RFC 9207: an answer of another provider is none
  if issuer ~= nil and issuer ~= document.issuer then
    return nil, "oidc.token_invalid"
  end
  if issuer == nil and document.authorization_response_iss_parameter_supported == true then
    return nil, "oidc.token_invalid"
  end
  local told = request:parameter "error"
  if told then
    log.info("The provider did not sign somebody in: " .. word(told))
    return nil, told == "access_denied" and "oidc.denied" or "oidc.provider_refused"
  end
  local code = request:parameter "code"
  if not code or code == "" or #code > LONGEST_CODE then
    return nil, "oidc.callback_malformed"
  end

  local answer, refused = exchange(conf, document, attempt, code)
  if not answer then
    return nil, refused
  end
  local claims, invalid = verify(conf, attempt, answer.id_token)
  if not claims then
    return nil, invalid
  end
  local failed = conf.userinfo and add_userinfo(conf, document, claims, answer.access_token)
  if failed then
    return nil, failed
  end
  return claims, nil, answer.id_token
end

return M
