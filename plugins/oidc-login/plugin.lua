--- plugin.lua: signs people in at an OpenID Connect provider, and knows them by a sealed cookie afterwards.
---
--- The authorization code flow with PKCE (OpenID Connect Core 1.0 section 3.1, RFC 7636). `attempt` is a sign-in that
--- is under way: it lives in a cookie of its own, so that several tabs can sign in at once. `session` is what the
--- browser has afterwards. Both cookies are sealed, so the gateway keeps nothing but what is used up or signed out.

local base64url = require "streamgate.base64url"
local cookie = require "streamgate.cookie"
local crypto = require "streamgate.crypto"
local json = require "streamgate.json"
local kv = require "streamgate.kv"
local log = require "streamgate.log"
local time = require "streamgate.time"

local attempts = require "attempt"
local provider = require "provider"
local settings = require "settings"

local M = {}

-- A browser keeps a cookie whose name and value have 4,096 bytes together (RFC 6265bis section 5.6); the rest is room.
local LARGEST_COOKIE = 3900

-- A place to come back to is part of a cookie.
local LONGEST_PATH = 1024

-- A principal's id stands in cookies and log lines; the gateway refuses longer ones.
local LONGEST_ID = 256

-- Pages of this plugin load nothing and cannot be framed, so nobody clicks their button unawares.
local PAGE_HEADERS = {
  ["content-type"] = "text/html; charset=utf-8",
  ["cache-control"] = "no-store",
  ["content-security-policy"] = "default-src 'none'; frame-ancestors 'none'",
  ["referrer-policy"] = "same-origin", -- with `no-referrer` the form's `Origin` would be `null`
  ["x-content-type-options"] = "nosniff",
}

local PAGE = [[<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Sign out</title>
%s
</html>
]]

local function copy(from)
  local to = {}
  for key, value in pairs(from) do
    to[key] = value
  end
  return to
end

--- Adds cookies to the headers of an answer. A Lua table has one value for a key, and an answer may set several
--- cookies; names of headers are compared without case, so each cookie takes another spelling of the name.
local function with_cookies(headers, cookies)
  for idx, line in ipairs(cookies) do
    local name = "set-cookie"
    local n_capitals = idx <= 3 and idx or idx + 1 -- the fourth character is the dash
    headers[name:sub(1, n_capitals):upper() .. name:sub(n_capitals + 1)] = line
  end
  return headers
end

local function go_to(request, status, target, cookies)
  local headers = { location = target, ["cache-control"] = "no-store", ["referrer-policy"] = "no-referrer" }
  return request:respond(status, with_cookies(headers, cookies))
end

--- A place of this gateway to come back to. Whatever a browser could take for another host becomes the root.
local function local_path(text)
  local is_local = text
    and #text <= LONGEST_PATH
    and text:find "^/"
    and not text:find "^//" -- another host, without a scheme
    and not text:find "[^\x21-\x7e]" -- browsers drop tabs and line ends, which could hide what comes next
    and not text:find("\\", 1, true) -- and take this for `/`
  return is_local and text or "/"
end

--- Whether a browser fetches a page ahead, which nobody has opened yet.
local function is_prefetch(request)
  return (request:header "sec-purpose" or ""):find("prefetch", 1, true) ~= nil
end

--- Whether somebody opens a page, as opposed to a script that fetches something, which cannot use a page to sign in.
local function is_navigation(request)
  if request:is_websocket() or request:method() ~= "GET" or is_prefetch(request) then
    return false
  end
  local mode = request:header "sec-fetch-mode"
  if mode then
    -- Providers do not let themselves be framed, so a frame has no use for a redirect.
    return mode == "navigate" and (request:header "sec-fetch-dest" or "document") == "document"
  end
  -- Browsers send Sec-Fetch-Mode to https and to this machine alone.
  local accept = (request:header "accept" or ""):lower()
  return accept:find("text/html", 1, true) ~= nil
    and not request:header "origin"
    and not request:header "x-requested-with"
end

--- Whether a request comes from a page of this gateway, or from the person at the address bar.
local function is_from_here(request, conf)
  if is_prefetch(request) then
    return false
  end
  local site = request:header "sec-fetch-site"
  if site then
    return site == "same-origin" or site == "none"
  end
  local origin = request:header "origin"
  return origin ~= nil and origin:lower() == conf.origin
end

local function session_cookie(conf, value, max_age)
  return cookie.format(conf.session_name, value, {
    path = "/",
    max_age = max_age,
    secure = conf.is_secure,
    http_only = true,
    same_site = "Lax",
  })
end

--- The session in the browser's cookie; with false instead, it had one and that is over.
local function session_of(request, conf)
  local value = request:cookie(conf.session_name)
  if not value or #value > LARGEST_COOKIE then
    return nil
  end
  local text = crypto.open(conf.session_key, value)
  local session = text and json.decode(text)
  if not session then
    return nil
  end
  if session.ends <= time.now() then
    return false
  end
  return session
end

--- Signing out is remembered as long as the session would have lasted: a copy of its cookie must not outlive it. The
--- second value is there when nobody can say.
local function is_signed_out(id)
  local noted, reason = kv.get("signed-out/" .. id)
  return noted ~= nil, reason
end

--- Sends the browser to the provider.
local function begin(request, conf, back_to)
  local document = provider.discover(conf)
  if not document then
    return request:reject "oidc.provider_away"
  end
  local attempt, cookies = attempts.begin(request, conf, local_path(back_to))
  return go_to(request, 302, provider.authorization_url(conf, document, attempt), cookies)
end

--- A claim, or nil where it is null.
local function present(claim)
  if claim ~= json.null then
    return claim
  end
end

local function is_scalar(value)
  local kind = type(value)
  return kind == "string" or kind == "number" or kind == "boolean"
end

--- A claim as an attribute: a string, a number, a boolean, or a list of them; nil for anything else.
local function attribute(value)
  if is_scalar(value) then
    return value
  end
  if type(value) ~= "table" or (next(value) ~= nil and #value == 0) then
    return nil
  end
  local list = {}
  for idx, item in ipairs(value) do
    if not is_scalar(item) then
      return nil
    end
    list[idx] = item
  end
  return json.array(list)
end

local function is_list_of_strings(value)
  if type(value) ~= "table" then
    return false
  end
  local n = 0
  for _, item in pairs(value) do
    n = n + 1
    if type(item) ~= "string" then
      return false
    end
  end
  return n == #value
end

--- Who the claims say it is: id and attributes, or nil when they do not say it in a form that can be used.
local function identity(conf, claims)
  local id = claims[conf.id_claim]
  if type(id) ~= "string" or id == "" or id == "-" or #id > LONGEST_ID then
    return nil
  end
  if id:find "%c" or id:find "\xc2[\x80-\x9f]" then -- control characters, those of Latin-1 in UTF-8 included
    return nil
  end
  local verified = present(claims.email_verified)
  if conf.id_claim == "email" and verified ~= nil and verified ~= true and verified ~= "true" then
    return nil -- anybody can say that an address is his
  end
  local attributes = {}
  for _, name in ipairs(conf.claims) do
    if name == "functions" then
      -- Whoever has no list may use all functions of the configuration, so one that is missing is an empty one.
      local functions = present(claims.functions) or json.array {}
      if not is_list_of_strings(functions) then
        return nil
      end
      attributes.functions = json.array(functions)
    else
      attributes[name] = attribute(claims[name])
    end
  end
  return id, attributes
end

--- The sealed session, or nil when it is too large for a cookie.
local function seal(conf, session)
  local sealed = crypto.seal(conf.session_key, json.encode(session))
  return #conf.session_name + 1 + #sealed <= LARGEST_COOKIE and sealed or nil
end

--- The browser is back from the provider.
local function finish(request, conf)
  if request:method() ~= "GET" then
    return request:reject("request.method_not_allowed", { allow = "GET" })
  end
  local attempt, used_up = attempts.find(request, conf)
  if not attempt then
    return request:reject "oidc.attempt_unknown"
  end
  local function refuse(code)
    return request:reject(code, with_cookies({ ["cache-control"] = "no-store" }, { used_up }))
  end
  -- What has no code redeems nothing, and anybody could fill the store with it.
  if request:parameter "code" and not attempts.use(conf, attempt) then
    return refuse "oidc.attempt_unknown"
  end

  local claims, why, id_token = provider.redeem(request, conf, attempt)
  if not claims then
    return refuse(why)
  end
  local id, attributes = identity(conf, claims)
  if not id then
    return refuse "oidc.identity_missing"
  end
  local session = {
    principal = id,
    attributes = attributes,
    ends = time.now() + conf.lifetime,
    id = base64url.encode(crypto.random(12)),
    id_token = conf.keep_id_token and id_token or nil,
  }
  local sealed = seal(conf, session)
  if not sealed and session.id_token then
    session.id_token = nil -- a hint, no more
    sealed = seal(conf, session)
  end
  if not sealed then
    return refuse "oidc.identity_too_large"
  end
  return go_to(request, 302, attempt.back_to, { session_cookie(conf, sealed, conf.lifetime), used_up })
end

local function page(request, body, cookies)
  return request:respond(200, with_cookies(copy(PAGE_HEADERS), cookies), PAGE:format(body))
end

--- Signs out. A link or form on another site must not do it: without proof that the person wants it, there is a button.
local function sign_out(request, conf)
  local method = request:method()
  if method ~= "GET" and method ~= "POST" then
    return request:reject("request.method_not_allowed", { allow = "GET, POST" })
  end
  if not is_from_here(request, conf) then
    if method == "POST" then
      return request:reject "oidc.logout_foreign"
    end
    local form = '<form method="post" action="%s"><button>Sign out</button></form>'
    return page(request, form:format(conf.logout_path), {}) -- settings.lua lets no markup into a path
  end

  local session = session_of(request, conf)
  if session and not kv.set("signed-out/" .. session.id, "1", session.ends - time.now()) then
    log.warn "A sign-out could not be noted: a copy of its cookie stays good until its end."
    if conf.on_unavailable == "reject" then
      return request:reject "oidc.store_away"
    end
  end
  local cookies = { session_cookie(conf, "", 0) }
  local hint = session and session.id_token or nil
  local target = conf.provider_logout and provider.logout_url(conf, hint) or conf.after_logout
  if target then
    return go_to(request, 303, target, cookies)
  end
  return page(request, "<p>You have signed out.</p>", cookies)
end

function M.configure(conf)
  return settings.check(conf)
end

--- @param request streamgate.Request
function M.authenticate(request, conf)
  local is_page = not request:is_websocket()
  local path = request:path()
  if is_page and path == conf.callback_path then
    return finish(request, conf)
  end
  if is_page and path == conf.logout_path then
    return sign_out(request, conf)
  end
  if is_page and path == conf.login_path then
    if not is_navigation(request) then
      return request:reject "oidc.login_needed"
    end
    return begin(request, conf, request:parameter "return")
  end

  local session = session_of(request, conf)
  local signed_out, unknown
  if session then
    signed_out, unknown = is_signed_out(session.id)
  end
  if unknown and conf.on_unavailable == "reject" then
    return request:reject "oidc.store_away"
  end
  if session and not signed_out then
    local principal = copy(session.attributes)
    principal.id = session.principal
    request:set("principal", principal)
    request:set("oidc-login", { id = session.id, ends = session.ends })
    return
  end
  if request:get "principal" then
    return -- another plugin knows who it is
  end
  if is_navigation(request) then
    local query = request:query()
    return begin(request, conf, query and path .. "?" .. query or path)
  end
  if signed_out then
    return request:reject "oidc.signed_out"
  end
  return request:reject(session == false and "oidc.session_over" or "oidc.login_needed")
end

--- Ends a session whose sign-in is over, or whose user has signed out.
--- @param request streamgate.Request
function M.session_tick(request, _, _)
  local login = request:get "oidc-login"
  if not login then
    return -- it was another plugin that let the browser in
  end
  if login.ends <= time.now() then
    return request:reject "oidc.session_over"
  end
  if (is_signed_out(login.id)) then
    return request:reject "oidc.signed_out"
  end
end

return M
