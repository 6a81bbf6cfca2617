--- spec.lua: what oidc-login promises.

local base64 = require "streamgate.base64"
local base64url = require "streamgate.base64url"
local crypto = require "streamgate.crypto"
local json = require "streamgate.json"
local spec = require "streamgate.spec"
local url = require "streamgate.url"

local NOW = 1000000
local ISSUER = "https://login.example"
local SESSION = "__Host-streamgate-oidc"
local GONE = {} -- in a table of changes: what is left out

local settings = {
  issuer = ISSUER,
  client_id = "gate way", -- a space, to see that it is encoded
  client_secret = "env:CLIENT",
  redirect_uri = "https://stream.example/oidc/callback",
  cookie_key = "env:A_KEY_THAT_NOBODY_CAN_GUESS_1234",
  claims = { "tenant", "groups" },
  algorithms = { "ES256" },
}

--- A table with changes.
local function changed(from, changes)
  local all = {}
  for _, part in ipairs { from, changes or {} } do
    for name, value in pairs(part) do
      all[name] = value
    end
  end
  for name, value in pairs(all) do
    if value == GONE then
      all[name] = nil
    end
  end
  return all
end

local function with(more)
  return changed(settings, more)
end

local function answer(status, value)
  return { status = status, headers = { ["content-type"] = "application/json" }, body = json.encode(value) }
end

local document = {
  issuer = ISSUER,
  authorization_endpoint = ISSUER .. "/authorize",
  token_endpoint = ISSUER .. "/token",
  userinfo_endpoint = ISSUER .. "/me",
  end_session_endpoint = ISSUER .. "/logout?from=app",
  jwks_uri = ISSUER .. "/jwks",
}

--- A provider. `at.token`, `at.me` answer in place of the endpoints; `more` changes the discovery document.
local function provider(at, more)
  local discovery = changed(document, more)
  spec.http(function(request)
    local path = request.url:match "^https://login%.example([^?]*)"
    if path == "/.well-known/openid-configuration" then
      return answer(200, discovery)
    elseif path == "/jwks" then
      return { status = 200, headers = { ["content-type"] = "application/json" }, body = spec.jwks() }
    elseif path == "/token" then
      return at.token(request)
    elseif path == "/me" then
      return at.me(request)
    end
    return nil, "unreachable"
  end)
end

--- The cookies that a browser has after an answer; `before` are those that it had.
local function jar(out, before)
  local cookies = {}
  for name, value in pairs(before or {}) do
    cookies[name] = value
  end
  for name, value in (out.headers["set-cookie"] or ""):gmatch "([%w_%-]*streamgate%-oidc[%w_%-]*)=([^;]*)" do
    cookies[name] = value ~= "" and value or nil
  end
  return cookies
end

local function cookie_header(cookies)
  local lines = {}
  for name, value in pairs(cookies) do
    lines[#lines + 1] = name .. "=" .. value
  end
  table.sort(lines)
  return #lines > 0 and table.concat(lines, "; ") or nil
end

local function count(cookies)
  local n_cookies = 0
  for _ in pairs(cookies) do
    n_cookies = n_cookies + 1
  end
  return n_cookies
end

--- A request; `cookies` are those of the browser.
local function ask(plugin, request, cookies)
  local all = changed({ at = NOW, tls = true }, request)
  all.headers = changed({ cookie = cookie_header(cookies or {}) }, request.headers)
  return plugin:request(all)
end

local function navigate(plugin, path, query, cookies)
  local headers = { ["sec-fetch-mode"] = "navigate", ["sec-fetch-dest"] = "document", accept = "text/html,*/*;q=0.8" }
  return ask(plugin, { path = path, query = query, headers = headers }, cookies)
end

local function fetch(plugin, cookies, more)
  local headers = { ["sec-fetch-mode"] = "cors", ["sec-fetch-dest"] = "empty", accept = "*/*" }
  return ask(plugin, changed({ path = "/api", headers = headers }, more), cookies)
end

--- Begins a sign-in: what the provider is asked, and the browser's cookies.
local function begin(plugin, path, query, cookies)
  local out = navigate(plugin, path or "/", query, cookies)
  spec.responded(out, 302)
  return url.parse_query(out.headers.location:match "%?(.*)$"), jar(out, cookies), out
end

--- What the provider knows about the user, in an ID token for a sign-in.
local function id_token(asked, more, options)
  local claims = changed({
    iss = ISSUER,
    aud = "gate way",
    sub = "ada",
    iat = NOW,
    exp = NOW + 60,
    nonce = asked.nonce,
    tenant = "blue",
    groups = { "pilots", "engineers" },
    secret = "not asked for",
  }, more)
  return spec.jwt(claims, options)
end

local function come_back(plugin, cookies, parameters, at)
  local request = { path = "/oidc/callback", query = url.query(parameters), at = at }
  request.headers = { ["sec-fetch-mode"] = "navigate", ["sec-fetch-site"] = "cross-site", accept = "text/html" }
  return ask(plugin, request, cookies)
end

--- A whole sign-in: the answer to the browser that comes back, and its cookies.
local function sign_in(plugin, more, options)
  local asked, cookies = begin(plugin, "/")
  provider {
    token = function()
      return answer(200, { access_token = "at", token_type = "Bearer", id_token = id_token(asked, more, options) })
    end,
    me = function()
      return nil, "unreachable"
    end,
  }
  local out = come_back(plugin, cookies, { code = "c0de", state = asked.state })
  return out, jar(out, cookies)
end

--- A browser that is signed in.
local function signed_in(plugin, more)
  provider {}
  local out, cookies = sign_in(plugin, more)
  spec.responded(out, 302)
  return cookies
end

local function has(text, part)
  if not (text or ""):find(part, 1, true) then
    error(("expected %q in %q"):format(part, text or ""), 2)
  end
end

local function has_not(text, part)
  if (text or ""):find(part, 1, true) then
    error(("expected no %q in %q"):format(part, text), 2)
  end
end

return spec.plugin("oidc-login", settings, function(it)
  it("sends a browser without a session to the provider", function(plugin)
    provider {}
    local out = navigate(plugin, "/play", "level=3")
    spec.responded(out, 302)
    spec.header(out, "cache-control", "no-store")
    has(out.headers.location, ISSUER .. "/authorize?")
    local asked = url.parse_query(out.headers.location:match "%?(.*)$")
    spec.equal(asked.response_type, "code")
    spec.equal(asked.client_id, "gate way")
    spec.equal(asked.redirect_uri, "https://stream.example/oidc/callback")
    spec.equal(asked.scope, "openid")
    spec.equal(asked.code_challenge_method, "S256")
    spec.equal({ #asked.state, #asked.nonce, #asked.code_challenge }, { 32, 32, 43 })
    local cookie = out.headers["set-cookie"]
    has(cookie, SESSION .. "-login-" .. asked.state:sub(1, 8) .. "=")
    for _, part in ipairs { "; Path=/", "; Max-Age=600", "; HttpOnly", "; SameSite=Lax", "; Secure" } do
      has(cookie, part)
    end
    has_not(cookie, asked.state)
    has_not(cookie, asked.nonce)
  end)

  it("asks with the scopes and parameters of its settings", function(plugin)
    provider {}
    local more = { scopes = { "email", "profile" }, parameters = { prompt = "select_account", hd = "a b&c" } }
    local asked = begin(plugin:with(with(more)))
    spec.equal(asked.scope, "openid email profile")
    spec.equal(asked.prompt, "select_account")
    spec.equal(asked.hd, "a b&c")
  end)

  it("keeps the query that the provider's endpoint has", function(plugin)
    provider({}, { authorization_endpoint = ISSUER .. "/authorize?policy=p1" })
    local _, _, out = begin(plugin)
    has(out.headers.location, ISSUER .. "/authorize?policy=p1&")
  end)

  it("signs a browser in", function(plugin)
    local token_request
    provider {}
    local asked, cookies = begin(plugin, "/play", "level=3")
    provider {
      token = function(request)
        token_request = request
        return answer(200, { access_token = "at", token_type = "Bearer", id_token = id_token(asked) })
      end,
    }
    local out = come_back(plugin, cookies, { code = "c0de", state = asked.state })
    spec.responded(out, 302)
    spec.header(out, "location", "/play?level=3")
    spec.header(out, "cache-control", "no-store")
    has(out.headers["set-cookie"], SESSION .. "=")
    has(out.headers["set-cookie"], "; Max-Age=28800")

    spec.equal(token_request.method, "POST")
    local credentials = base64.encode("gate%20way:secret-CLIENT")
    spec.equal(token_request.headers.authorization, "Basic " .. credentials)
    local form = url.parse_query(token_request.body)
    spec.equal(form.grant_type, "authorization_code")
    spec.equal(form.code, "c0de")
    spec.equal(form.redirect_uri, "https://stream.example/oidc/callback")
    spec.equal(form.client_secret, nil)
    spec.equal(base64url.encode(crypto.sha256(form.code_verifier)), asked.code_challenge)

    cookies = jar(out, cookies)
    spec.equal(count(cookies), 1, "the attempt's cookie is gone")
    out = fetch(plugin, cookies)
    spec.passed(out)
    spec.set(out, "principal", { id = "ada", tenant = "blue", groups = { "pilots", "engineers" } })
    spec.passed(fetch(plugin, cookies, { websocket = true }))
    spec.passed(navigate(plugin, "/play", nil, cookies))
  end)

  it("shows the provider who it is in the way that is set", function(plugin)
    for auth, secret in pairs { client_secret_post = "env:CLIENT", none = GONE } do
      local other = plugin:with(with { client_auth = auth, client_secret = secret })
      provider {}
      local asked, cookies = begin(other)
      local token_request
      provider {
        token = function(request)
          token_request = request
          return answer(200, { id_token = id_token(asked) })
        end,
      }
      spec.responded(come_back(other, cookies, { code = "c0de", state = asked.state }), 302)
      local form = url.parse_query(token_request.body)
      spec.equal(token_request.headers.authorization, nil)
      spec.equal(form.client_id, "gate way")
      spec.equal(form.client_secret, auth ~= "none" and "secret-CLIENT" or nil)
    end
  end)

  it("never redirects what cannot show a page", function(plugin)
    provider {}
    local html = "text/html,application/xhtml+xml"
    for what, request in pairs {
      ["a WebSocket"] = { websocket = true },
      ["a WebSocket of an old browser"] = { websocket = true, headers = { accept = html } },
      ["a fetch"] = { headers = { ["sec-fetch-mode"] = "cors", accept = "*/*" } },
      ["a fetch that wants HTML"] = { headers = { ["sec-fetch-mode"] = "same-origin", accept = html } },
      ["an image"] = { headers = { ["sec-fetch-mode"] = "no-cors", ["sec-fetch-dest"] = "image" } },
      ["a frame"] = { headers = { ["sec-fetch-mode"] = "navigate", ["sec-fetch-dest"] = "iframe", accept = html } },
      ["a form"] = { method = "POST", headers = { ["sec-fetch-mode"] = "navigate", accept = html } },
      ["a prefetch"] = { headers = { ["sec-fetch-mode"] = "navigate", ["sec-purpose"] = "prefetch;prerender" } },
      ["an old fetch"] = { headers = { accept = "application/json" } },
      ["an old script"] = { headers = { accept = html, ["x-requested-with"] = "XMLHttpRequest" } },
      ["a script of another page"] = { headers = { accept = html, origin = "https://app.example" } },
      ["curl"] = { headers = { accept = "*/*" } },
      ["who says nothing"] = {},
      ["a fetch of the login path"] = { path = "/oidc/login", headers = { ["sec-fetch-mode"] = "cors" } },
      ["a WebSocket to the login path"] = { path = "/oidc/login", websocket = true },
      ["a WebSocket to the way back"] = { path = "/oidc/callback", query = "state=x&code=y", websocket = true },
    } do
      local out = ask(plugin, request)
      if out.code ~= "oidc.login_needed" then
        error(("%s: expected oidc.login_needed, got %s %s"):format(what, out.code, out.status))
      end
      spec.header(out, "location", nil)
      spec.header(out, "set-cookie", nil)
    end
    spec.equal(#spec.requests(), 0, "requests to the provider")
  end)

  it("knows a page by Accept where browsers say no more", function(plugin)
    provider {}
    spec.responded(ask(plugin, { path = "/", headers = { accept = "text/html,*/*;q=0.8" } }), 302)
  end)

  it("uses a sign-in once", function(plugin)
    local n_exchanges = 0
    provider {}
    local asked, cookies = begin(plugin)
    provider {
      token = function()
        n_exchanges = n_exchanges + 1
        return answer(200, { id_token = id_token(asked) })
      end,
    }
    spec.responded(come_back(plugin, cookies, { code = "c0de", state = asked.state }), 302)
    local out = come_back(plugin, cookies, { code = "c0de", state = asked.state })
    spec.rejected(out, "oidc.attempt_unknown")
    spec.equal(n_exchanges, 1)
  end)

  it("takes nobody back whom it did not send", function(plugin)
    provider {}
    local asked, cookies = begin(plugin)
    local other, other_cookies = begin(plugin)
    local name = SESSION .. "-login-" .. asked.state:sub(1, 8)
    local other_name = SESSION .. "-login-" .. other.state:sub(1, 8)
    for _, try in ipairs {
      { {}, asked.state }, -- another browser
      { other_cookies, asked.state }, -- which has an attempt of its own
      { { [name] = other_cookies[other_name] }, asked.state }, -- under the right name
      { cookies, asked.state:sub(1, 31) .. (asked.state:sub(32) == "A" and "B" or "A") },
      { cookies, asked.state:sub(1, 8) },
      { cookies, asked.state .. "A" },
      { cookies, "" },
      { cookies, ("x"):rep(5000) },
      { cookies, "../../../../../../../../../../xx" },
      { { [name] = cookies[name]:sub(1, -2) .. (cookies[name]:sub(-1) == "A" and "Q" or "A") }, asked.state },
      { { [name] = "" }, asked.state },
      { { [name] = ("A"):rep(4000) }, asked.state },
    } do
      local out = come_back(plugin, try[1], { code = "c0de", state = try[2] })
      spec.rejected(out, "oidc.attempt_unknown")
      spec.header(out, "set-cookie", nil)
    end
    spec.rejected(come_back(plugin, cookies, { code = "c0de" }), "oidc.attempt_unknown")
  end)

  it("waits for somebody at the provider, but not for ever", function(plugin)
    provider {}
    local asked, cookies = begin(plugin)
    local out = come_back(plugin, cookies, { code = "c0de", state = asked.state }, NOW + 600)
    spec.rejected(out, "oidc.attempt_unknown")
  end)

  it("lets several tabs sign in at once, and bounds their cookies", function(plugin)
    provider {}
    local first, cookies = begin(plugin, "/one")
    local second
    second, cookies = begin(plugin, "/two", nil, cookies)
    local current
    provider {
      token = function()
        return answer(200, { id_token = id_token(current) })
      end,
    }
    for path, asked in pairs { ["/one"] = first, ["/two"] = second } do
      current = asked
      local out = come_back(plugin, cookies, { code = "c0de", state = asked.state })
      spec.header(out, "location", path)
      cookies = jar(out, cookies)
    end
    spec.equal(count(cookies), 1)

    cookies = {}
    local names = {}
    for idx = 1, 12 do
      local out = ask(plugin, { path = "/", at = NOW + idx, headers = { accept = "text/html" } }, cookies)
      local state = url.parse_query(out.headers.location:match "%?(.*)$").state
      names[idx] = SESSION .. "-login-" .. state:sub(1, 8)
      cookies = jar(out, cookies)
    end
    spec.equal(count(cookies), 5)
    for idx = 8, 12 do
      spec.equal(cookies[names[idx]] ~= nil, true, "the newest are left")
    end
  end)

  it("is not confused by cookies that only look like its own", function(plugin)
    provider {}
    local cookies = {}
    for idx = 1, 30 do
      cookies[("%s-login-forged%02d"):format(SESSION, idx)] = "x"
    end
    cookies[SESSION .. "-login-"] = "x"
    local out = navigate(plugin, "/", nil, cookies)
    spec.responded(out, 302)
    spec.equal(select(2, out.headers["set-cookie"]:gsub("Max%-Age=0", "")) <= 5, true)
    cookies = {}
    for idx = 1, 9 do
      cookies[("%s-login-/(%d)@{}?"):format(SESSION, idx)] = "x" -- no name that could be set
    end
    out = navigate(plugin, "/", nil, cookies)
    spec.responded(out, 302)
    has_not(out.headers["set-cookie"], "Max-Age=0")
  end)

  it("believes no ID token that was not made for this sign-in", function(plugin)
    for what, change in pairs {
      nonce = { nonce = "another" },
      ["no nonce"] = { nonce = GONE },
      audience = { aud = "another" },
      issuer = { iss = "https://evil.example" },
      ["no issuer"] = { iss = GONE },
      expired = { iat = NOW - 600, exp = NOW - 300 },
      ["without end"] = { exp = GONE },
      ["without subject"] = { sub = GONE },
      party = { azp = "another" },
      parties = { aud = { "gate way", "another" } },
    } do
      provider {}
      local out, cookies = sign_in(plugin, change)
      if out.code ~= "oidc.token_invalid" then
        error(("%s: expected oidc.token_invalid, got %s %s"):format(what, out.code, out.status))
      end
      spec.equal(count(cookies), 0, what)
    end
    provider {}
    spec.rejected(sign_in(plugin, nil, { kid = "other", algorithm = "EdDSA" }), "oidc.token_invalid")
    provider {}
    spec.rejected(sign_in(plugin, nil, { algorithm = "HS256", secret = "secret-CLIENT" }), "oidc.token_invalid")
    provider {}
    spec.responded(sign_in(plugin, { aud = { "gate way", "another" }, azp = "gate way" }), 302)
  end)

  it("believes no cookie that it did not seal", function(plugin)
    local cookies = signed_in(plugin)
    local sealed = cookies[SESSION]
    local asked, attempts = begin(plugin)
    local attempt = attempts[SESSION .. "-login-" .. asked.state:sub(1, 8)]
    for _, value in ipairs {
      sealed:sub(1, -2) .. (sealed:sub(-1) == "A" and "Q" or "A"),
      (sealed:sub(1, 1) == "A" and "B" or "A") .. sealed:sub(2),
      sealed:sub(2),
      sealed .. sealed,
      base64url.encode(json.encode { principal = "eve", attributes = {}, ends = NOW + 60, id = "x" }),
      attempt, -- sealed for something else
      "x",
      "",
    } do
      spec.rejected(fetch(plugin, { [SESSION] = value }), "oidc.login_needed")
    end
    for _, other in ipairs {
      { client_id = "another" },
      { cookie_key = "env:ANOTHER_KEY_THAT_NOBODY_CAN_GUESS" },
    } do
      spec.rejected(fetch(plugin:with(with(other)), cookies), "oidc.login_needed")
    end
    spec.passed(fetch(plugin, cookies))
  end)

  it("comes back to its own pages alone", function(plugin)
    local html = { accept = "text/html" }
    local current
    local function back_from(first)
      provider {}
      local out = ask(plugin, first)
      spec.responded(out, 302)
      current = url.parse_query(out.headers.location:match "%?(.*)$")
      provider {
        token = function()
          return answer(200, { id_token = id_token(current) })
        end,
      }
      out = come_back(plugin, jar(out), { code = "c0de", state = current.state })
      spec.responded(out, 302)
      return out.headers.location
    end

    for text, path in pairs {
      ["/play"] = "/play",
      ["/play?level=3&at=https://a.example"] = "/play?level=3&at=https://a.example",
      ["/play#part"] = "/play#part",
      ["/" .. ('"'):rep(1023)] = "/" .. ('"'):rep(1023), -- twice as long in JSON
      [""] = "/",
      ["play"] = "/",
      ["https://evil.example/"] = "/",
      ["//evil.example/"] = "/",
      ["///evil.example/"] = "/",
      ["/\\evil.example/"] = "/",
      ["\\\\evil.example/"] = "/",
      ["/play\\..\\evil"] = "/",
      ["/\t/evil.example/"] = "/",
      ["/\n/evil.example/"] = "/",
      ["/\r\nset-cookie: a=b"] = "/",
      [" //evil.example/"] = "/",
      ["\0//evil.example/"] = "/",
      ["javascript:alert(1)"] = "/",
      ["/\u{2025}/evil.example"] = "/",
      ["/" .. ("x"):rep(1024)] = "/",
    } do
      local query = "return=" .. url.encode(text)
      spec.equal(back_from { path = "/oidc/login", query = query, headers = html }, path, ("%q"):format(text))
    end
    spec.equal(back_from { path = "/oidc/login", headers = html }, "/")
    spec.equal(back_from { path = "//evil.example/", headers = html }, "/")
    spec.equal(back_from { path = "/play", query = "to=//evil.example", headers = html }, "/play?to=//evil.example")
  end)

  it("tells that the provider said no, and not in its words", function(plugin)
    for told, code in pairs {
      access_denied = "oidc.denied",
      server_error = "oidc.provider_refused",
      ["<script>alert(1)</script>\r\nx: y"] = "oidc.provider_refused",
      [""] = "oidc.provider_refused",
    } do
      provider {}
      local asked, cookies = begin(plugin)
      local parameters = { error = told, error_description = "<b>mallory</b>", state = asked.state }
      local out = come_back(plugin, cookies, parameters)
      spec.rejected(out, code)
      spec.equal(count(jar(out, cookies)), 0, "the attempt's cookie is gone")
      for name, value in pairs(out.headers) do
        has_not(name .. value, "mallory")
      end
      for _, line in ipairs(out.logged or {}) do
        has_not(line.message, "mallory")
        has_not(line.message, "<script>")
      end
    end
  end)

  it("needs an answer to go on with", function(plugin)
    provider {}
    local asked, cookies = begin(plugin)
    spec.rejected(come_back(plugin, cookies, { state = asked.state }), "oidc.callback_malformed")
    asked, cookies = begin(plugin)
    local parameters = { state = asked.state, code = ("x"):rep(5000) }
    spec.rejected(come_back(plugin, cookies, parameters), "oidc.callback_malformed")
    local out = ask(plugin, { method = "POST", path = "/oidc/callback" })
    spec.rejected(out, "request.method_not_allowed")
    spec.header(out, "allow", "GET")
  end)

  it("takes no answer of another provider", function(plugin)
    local function back(more, parameters)
      provider({}, more)
      local asked, cookies = begin(plugin)
      provider({
        token = function()
          return answer(200, { id_token = id_token(asked) })
        end,
      }, more)
      parameters.code = "c0de"
      parameters.state = asked.state
      return come_back(plugin, cookies, parameters)
    end
    spec.rejected(back({}, { iss = "https://evil.example" }), "oidc.token_invalid")
    spec.responded(back({}, { iss = ISSUER }), 302)
  end)

  it("misses the issuer of an answer where the provider says that there is one", function(plugin)
    provider({}, { authorization_response_iss_parameter_supported = true })
    local asked, cookies = begin(plugin)
    spec.rejected(come_back(plugin, cookies, { code = "c0de", state = asked.state }), "oidc.token_invalid")
  end)

  it("says whether the provider is away or does not want to", function(plugin)
    for _, case in ipairs {
      { "oidc.provider_refused", answer(400, { error = "invalid_grant", error_description = "mallory" }) },
      { "oidc.provider_refused", answer(401, { error = "invalid_client" }) },
      { "oidc.provider_refused", { status = 302, headers = { location = "https://evil.example/" }, body = "" } },
      { "oidc.provider_away", answer(500, {}) },
      { "oidc.provider_away", { status = 503, headers = {}, body = "<html>" } },
      { "oidc.provider_away", nil },
      { "oidc.token_invalid", { status = 200, headers = {}, body = "<html>" } },
      { "oidc.token_invalid", answer(200, { access_token = "at" }) },
      { "oidc.token_invalid", answer(200, { id_token = 7 }) },
      { "oidc.token_invalid", answer(200, { id_token = "not.a.token" }) },
      { "oidc.token_invalid", answer(200, { id_token = ("x"):rep(20000) }) },
      { "oidc.token_invalid", answer(200, "text") },
    } do
      provider {}
      local asked, cookies = begin(plugin)
      provider {
        token = function()
          if case[2] then
            return case[2]
          end
          return nil, "timeout"
        end,
      }
      local out = come_back(plugin, cookies, { code = "c0de", state = asked.state })
      spec.rejected(out, case[1])
      spec.equal(count(jar(out, cookies)), 0)
      for _, line in ipairs(out.logged or {}) do
        has_not(line.message, "mallory")
        has_not(line.message, "c0de")
      end
    end
  end)

  it("answers at once where the provider is away", function(plugin)
    spec.http(function()
      return nil, "unreachable"
    end)
    spec.rejected(navigate(plugin, "/"), "oidc.provider_away")
    spec.rejected(fetch(plugin), "oidc.login_needed")
  end)

  it("sends no secret where there is no TLS", function(plugin)
    provider({}, { token_endpoint = "http://login.example/token" })
    spec.rejected(navigate(plugin, "/"), "oidc.provider_away")
  end)

  it("ends a sign-in after its lifetime", function(plugin)
    local cookies = signed_in(plugin)
    local out = fetch(plugin, cookies, { at = NOW + 28799 })
    spec.passed(out)
    local state = { principal = { id = "ada" }, set = { ["oidc-login"] = out.set["oidc-login"] } }
    state.at = NOW + 28799
    spec.passed(plugin:tick(state))
    state.at = NOW + 28800
    spec.rejected(plugin:tick(state), "oidc.session_over")
    spec.rejected(fetch(plugin, cookies, { at = NOW + 28800 }), "oidc.session_over")
    provider {}
    local html = { accept = "text/html" }
    spec.responded(ask(plugin, { path = "/", at = NOW + 28800, headers = html }, cookies), 302)
  end)

  it("leaves a session alone that another plugin let in", function(plugin)
    spec.passed(plugin:tick { principal = { id = "ada" }, at = NOW })
    provider {}
    local out = fetch(plugin, nil, { principal = { id = "robot" } })
    spec.passed(out)
    spec.set(out, "principal", { id = "robot" })
  end)

  it("signs out, here and at the provider", function(plugin)
    local cookies = signed_in(plugin)
    local login = fetch(plugin, cookies).set["oidc-login"]
    local headers = { ["sec-fetch-site"] = "same-origin", ["sec-fetch-mode"] = "navigate" }
    local out = ask(plugin, { path = "/oidc/logout", headers = headers }, cookies)
    spec.responded(out, 303)
    has(out.headers.location, ISSUER .. "/logout?from=app&")
    spec.equal(url.parse_query(out.headers.location:match "%?(.*)$"), { from = "app", client_id = "gate way" })
    has(out.headers["set-cookie"], SESSION .. "=;")
    has(out.headers["set-cookie"], "Max-Age=0")
    spec.equal(count(jar(out, cookies)), 0)

    -- Whoever kept a copy of the cookie has nothing of it, nor has a session that is still open.
    spec.rejected(fetch(plugin, cookies), "oidc.signed_out")
    spec.responded(navigate(plugin, "/", nil, cookies), 302)
    local open = { principal = { id = "ada" }, set = { ["oidc-login"] = login }, at = NOW }
    spec.rejected(plugin:tick(open), "oidc.signed_out")
  end)

  it("lets no other site sign somebody out", function(plugin)
    local cookies = signed_in(plugin)
    for _, site in ipairs { "cross-site", "same-site" } do
      local headers = { ["sec-fetch-site"] = site, ["sec-fetch-mode"] = "navigate" }
      local out = ask(plugin, { path = "/oidc/logout", headers = headers }, cookies)
      spec.responded(out, 200)
      spec.header(out, "set-cookie", nil)
      spec.header(out, "content-security-policy", "default-src 'none'; frame-ancestors 'none'")
      out = ask(plugin, { method = "POST", path = "/oidc/logout", headers = headers }, cookies)
      spec.rejected(out, "oidc.logout_foreign")
    end
    local foreign = { "https://evil.example", "null", "http://stream.example", "https://stream.example.evil.example" }
    local ahead = { ["sec-fetch-site"] = "none", ["sec-purpose"] = "prefetch" }
    spec.header(ask(plugin, { path = "/oidc/logout", headers = ahead }, cookies), "set-cookie", nil)
    for _, origin in ipairs(foreign) do
      local out = ask(plugin, { method = "POST", path = "/oidc/logout", headers = { origin = origin } }, cookies)
      spec.rejected(out, "oidc.logout_foreign")
    end
    spec.rejected(ask(plugin, { method = "POST", path = "/oidc/logout" }, cookies), "oidc.logout_foreign")
    spec.rejected(ask(plugin, { method = "DELETE", path = "/oidc/logout" }, cookies), "request.method_not_allowed")
    spec.passed(fetch(plugin, cookies))

    local headers = { origin = "https://stream.example" } -- a browser without Sec-Fetch-Site
    spec.responded(ask(plugin, { method = "POST", path = "/oidc/logout", headers = headers }, cookies), 303)
    spec.rejected(fetch(plugin, cookies), "oidc.signed_out")
  end)

  it("goes where it is told after signing out", function(plugin)
    local headers = { ["sec-fetch-site"] = "none" }
    local function leave(more, discovery)
      local other = plugin:with(with(more))
      local cookies = signed_in(other)
      provider({}, discovery)
      return ask(other, { path = "/oidc/logout", headers = headers }, cookies)
    end
    local bye = "https://www.example/bye?a=b"
    local out = leave { after_logout = bye }
    local told = url.parse_query(out.headers.location:match "%?(.*)$")
    spec.equal(told.post_logout_redirect_uri, bye)
    spec.equal(told.id_token_hint, nil)
    spec.header(leave { after_logout = bye, provider_logout = false }, "location", bye)
    out = leave { provider_logout = false }
    spec.responded(out, 200)
    has(out.headers["set-cookie"], "Max-Age=0")
    out = leave { keep_id_token = true }
    told = url.parse_query(out.headers.location:match "%?(.*)$")
    spec.equal(select(2, told.id_token_hint:gsub("%.", "")), 2, "dots of the hint")
    spec.responded(ask(plugin, { path = "/oidc/logout", headers = headers }), 303) -- without a session
  end)

  it("signs out where the provider has no page for it", function(plugin)
    provider({}, { end_session_endpoint = GONE })
    local headers = { ["sec-fetch-site"] = "none" }
    local out = ask(plugin, { path = "/oidc/logout", headers = headers })
    spec.responded(out, 200)
    has(out.headers["set-cookie"], "Max-Age=0")
  end)

  it("knows nobody by a claim that is missing or cannot be an id", function(plugin)
    local by_email = plugin:with(with { id_claim = "email" })
    for _, claims in ipairs {
      {},
      { email = "" },
      { email = "-" },
      { email = 7 },
      { email = { "a" } },
      { email = "a\nb" },
      { email = "a\u{85}b" },
      { email = ("x"):rep(257) },
      { email = "ada@a.example", email_verified = false },
      { email = "ada@a.example", email_verified = "false" },
      { email = "ada@a.example", email_verified = 0 },
    } do
      provider {}
      spec.rejected(sign_in(by_email, claims), "oidc.identity_missing")
    end
    local cookies = signed_in(by_email, { email = "ada@a.example", email_verified = true })
    spec.set(fetch(by_email, cookies), "principal", {
      id = "ada@a.example",
      tenant = "blue",
      groups = { "pilots", "engineers" },
    })
  end)

  it("keeps the claims that it is told to, in a form that others can use", function(plugin)
    local other = plugin:with(with { claims = { "level", "is_admin", "address", "mixed", "absent", "functions" } })
    local cookies = signed_in(other, {
      level = 3,
      is_admin = true,
      address = { street = "nested" },
      mixed = { { "nested" } },
      functions = { "f00d" },
    })
    spec.set(fetch(other, cookies), "principal", { id = "ada", level = 3, is_admin = true, functions = { "f00d" } })
    for _, functions in ipairs { "all", 7, { 7 }, { a = "f00d" }, { { "f00d" } }, { "f00d", { "f00e" } } } do
      provider {}
      spec.rejected(sign_in(other, { functions = functions }), "oidc.identity_missing")
    end
    -- Whoever has no list of its own could use all functions.
    for _, none in ipairs { {}, { functions = json.null }, { functions = json.array {} } } do
      local nobody = signed_in(other, none)
      spec.equal(#fetch(other, nobody).set.principal.functions, 0)
    end
  end)

  it("makes no cookie that a browser would drop", function(plugin)
    provider {}
    spec.rejected(sign_in(plugin, { tenant = ("x"):rep(4000) }), "oidc.identity_too_large")
    local hinting = plugin:with(with { keep_id_token = true, claims = { "tenant" } })
    local cookies = signed_in(hinting, { tenant = ("x"):rep(2000) })
    spec.equal(#SESSION + 1 + #cookies[SESSION] <= 3900, true)
    spec.passed(fetch(hinting, cookies))
  end)

  it("asks at the userinfo endpoint when it is told to", function(plugin)
    local asking = plugin:with(with { userinfo = true, claims = { "tenant", "team" } })
    local function back(me)
      provider {}
      local asked, cookies = begin(asking)
      local seen
      provider {
        token = function()
          return answer(200, { access_token = "at", id_token = id_token(asked) })
        end,
        me = function(request)
          seen = request
          return me
        end,
      }
      local out = come_back(asking, cookies, { code = "c0de", state = asked.state })
      spec.equal(seen.headers.authorization, "Bearer at")
      return out, jar(out, cookies)
    end
    local out, cookies = back(answer(200, { sub = "ada", tenant = "red", team = "seven" }))
    spec.responded(out, 302)
    spec.set(fetch(asking, cookies), "principal", { id = "ada", tenant = "blue", team = "seven" })
    spec.rejected(back(answer(200, { sub = "eve", team = "seven" })), "oidc.token_invalid")
    spec.rejected(back(answer(401, { sub = "ada" })), "oidc.token_invalid")
    spec.rejected(back { status = 200, headers = {}, body = "<html>" }, "oidc.token_invalid")
  end)

  it("uses plain cookies where its own URL is plain", function(plugin)
    local plain = plugin:with(with { redirect_uri = "http://localhost:49100/oidc/callback" })
    provider {}
    local out = ask(plain, { path = "/", tls = false, headers = { accept = "text/html" } })
    spec.responded(out, 302)
    has_not(out.headers["set-cookie"], "Secure")
    has_not(out.headers["set-cookie"], "__Host-")
    has(out.headers["set-cookie"], "; HttpOnly")
    local headers = { origin = "http://localhost:49100" }
    spec.responded(ask(plain, { method = "POST", path = "/oidc/logout", headers = headers }), 303)
  end)

  it("refuses settings that do not fit together", function()
    for part, more in pairs {
      ["expected a URL without query"] = { redirect_uri = "https://stream.example/oidc/callback?a=b" },
      ["redirect_uri: expected"] = { redirect_uri = "https://user@stream.example/cb" },
      ["a path of its own"] = { redirect_uri = "https://stream.example/" },
      ["logout_path: expected"] = { logout_path = '/out"><script>' },
      ["login_path: expected"] = { login_path = "//login" },
      ["different paths"] = { login_path = "/oidc/logout" },
      ["client_secret: missing"] = { client_secret = GONE },
      ["client_secret: not used"] = { client_auth = "none" },
      ["cookie_key: expected"] = { cookie_key = "env:SHORT" },
      ["lifetime"] = { lifetime = "30s" },
      ["login_window"] = { login_window = "2h" },
      ["cookie_name: expected"] = { cookie_name = "a=b" },
      ["is not one of"] = { algorithms = { "HS256" } },
      ["algorithms: expected"] = { algorithms = {} },
      ["parameters: state"] = { parameters = { state = "x" } },
      ["claims: `id`"] = { claims = { "id" } },
      ["after_logout: expected"] = { after_logout = "/bye" },
    } do
      spec.refused(with(more), part)
    end
  end)
end)
