--- spec.lua: what introspection-auth promises.

local base64 = require "streamgate.base64"
local json = require "streamgate.json"
local spec = require "streamgate.spec"

local url = "https://id.example/introspect"
local settings = { url = url, client_id = "gate way", client_secret = "env:CLIENT" } -- its value is "secret-CLIENT"

local function with(plugin, more)
  local all = {}
  for key, value in pairs(settings) do
    all[key] = value
  end
  for key, value in pairs(more) do
    all[key] = value
  end
  return plugin:with(all)
end

--- A server that says one thing about all tokens.
local function server(claims, status)
  local body = type(claims) == "string" and claims or json.encode(claims)
  spec.http(function()
    return { status = status or 200, headers = { ["content-type"] = "application/json" }, body = body }
  end)
end

local function away()
  spec.http(function()
    return nil, "timeout"
  end)
end

local function n_asked()
  return #spec.requests()
end

local function bearer(token, more)
  local request = { headers = { authorization = "Bearer " .. token } }
  for key, value in pairs(more or {}) do
    request[key] = value
  end
  return request
end

--- An open session of a request, as `session_tick` finds it.
local function session(out, at)
  return { principal = out.set.principal, set = { ["introspection-auth"] = out.set["introspection-auth"] }, at = at }
end

return spec.plugin("introspection-auth", settings, function(it)
  it("refuses a request without a token, and asks nobody", function(plugin)
    server { active = true, sub = "ada" }
    local out = plugin:request {}
    spec.rejected(out, "auth.missing_token")
    spec.header(out, "www-authenticate", 'Bearer realm="streamgate"')
    for _, value in ipairs { "Basic YWRh", "Bearer", "Bearer ", "s3cret", "Bearer a b" } do
      spec.rejected(plugin:request { headers = { authorization = value } }, "auth.missing_token")
    end
    spec.equal(n_asked(), 0)
  end)

  it("lets in whose token is active", function(plugin)
    server { active = true, sub = "ada", username = "Ada", client_id = "app", email = "ada@example.com" }
    local out = plugin:request(bearer "s3cret")
    spec.passed(out)
    spec.set(out, "principal", { id = "ada", username = "Ada", client_id = "app" })
    spec.set(out, "introspection-auth", nil)
  end)

  it("asks as RFC 7662 wants to be asked", function(plugin)
    server { active = true, sub = "ada" }
    plugin:request(bearer "s3cret+/=")
    local request = spec.requests()[1]
    spec.equal(request.method, "POST")
    spec.equal(request.url, url)
    spec.equal(request.headers.accept, "application/json")
    spec.equal(request.headers["content-type"], "application/x-www-form-urlencoded")
    spec.equal(request.headers.authorization, "Basic " .. base64.encode "gate%20way:secret-CLIENT")
    spec.equal(request.body:find("token=s3cret%2B%2F%3D", 1, true) ~= nil, true, "the token is in the form")
    spec.equal(request.body:find("token_type_hint=access_token", 1, true) ~= nil, true, "and what it is")
    spec.equal(request.body:find("client_secret", 1, true), nil)
  end)

  it("puts the client into the form when it is told to", function(plugin)
    server { active = true, sub = "ada" }
    spec.passed(with(plugin, { client_auth = "post" }):request(bearer "s3cret"))
    local request = spec.requests()[1]
    spec.equal(request.headers.authorization, nil)
    spec.equal(request.body:find("client_secret=secret-CLIENT", 1, true) ~= nil, true, "the secret is in the form")
    spec.equal(request.body:find "client_id=gate" ~= nil, true, "and the id")
  end)

  it("takes the token from where a browser can put it", function(plugin)
    server { active = true, sub = "ada" }
    for _, offer in ipairs { "authorization-bearer.s3cret, streamgate.v1", "authorization.s3cret, streamgate.v1" } do
      spec.passed(plugin:request { websocket = true, headers = { ["sec-websocket-protocol"] = offer } })
    end
    spec.rejected(plugin:request { headers = { cookie = "token=s3cret" } }, "auth.missing_token")
    local with_cookie = with(plugin, { cookie = "token" })
    spec.passed(with_cookie:request { headers = { cookie = "a=b; token=s3cret" } })
    spec.rejected(with_cookie:request { headers = { cookie = "token=" } }, "auth.missing_token")
    local both = { cookie = "token=s3cret", authorization = "Basic YWRh" }
    spec.rejected(with_cookie:request { headers = both }, "auth.missing_token")
  end)

  it("refuses a token that is not active, whatever else is said", function(plugin)
    server { active = false, sub = "ada", exp = 9e9 }
    local out = plugin:request(bearer "s3cret")
    spec.rejected(out, "auth.unknown_token")
    spec.header(out, "www-authenticate", 'Bearer realm="streamgate", error="invalid_token"')
    spec.set(out, "principal", nil)
  end)

  it("asks nobody about what cannot be a token", function(plugin)
    server { active = true, sub = "ada" }
    for _, value in ipairs { ("x"):rep(8193), ("x"):rep(60000), "\xff\xfe", "caf\xc3\xa9" } do
      spec.rejected(plugin:request(bearer(value)), "auth.unknown_token")
    end
    spec.equal(n_asked(), 0)
    spec.passed(plugin:request(bearer(("x"):rep(8192))))
  end)

  it("lets nobody in when the server gives no answer that can be used", function(plugin)
    for idx, reason in ipairs { "timeout", "unreachable", "tls", "too_large", "broken", "not_allowed" } do
      spec.http(function()
        return nil, reason
      end)
      local out = plugin:request(bearer("a" .. idx))
      spec.rejected(out, "auth.unavailable")
      spec.equal(out.status, 503)
    end
    for idx, status in ipairs { 201, 302, 400, 401, 403, 404, 500, 503 } do
      server({ active = true, sub = "ada" }, status)
      spec.rejected(plugin:request(bearer("b" .. idx)), "auth.unavailable")
    end
    for idx, body in ipairs {
      "",
      "true",
      "null",
      "[]",
      "{}",
      '"active"',
      "<html>",
      '{"active":"true"}',
      '{"active":1}',
      '{"active":null,"sub":"ada"}',
      '{"active":true,"sub":"ada","exp":"never"}',
      '{"active":true,"sub":"ada","exp":[1]}',
      '{"active":true,"sub":"ada","nbf":true}',
      '{"active":true,"sub":"ada","aud":5}',
      '{"active":true,"sub":"ada","aud":[["a"]]}',
      '{"active":true,"sub":"ada","scope":{"a":1},"aud":false}',
      ("["):rep(5000),
    } do
      server(body)
      spec.rejected(plugin:request(bearer("c" .. idx)), "auth.unavailable")
    end
  end)

  it("does not remember a failure", function(plugin)
    away()
    spec.rejected(plugin:request(bearer "s3cret"), "auth.unavailable")
    server { active = true, sub = "ada" }
    spec.passed(plugin:request(bearer "s3cret"))
  end)

  it("asks once about a token while the answer is fresh", function(plugin)
    server { active = true, sub = "ada" }
    for _ = 1, 3 do
      spec.passed(plugin:request(bearer("s3cret", { at = 1000 })))
    end
    spec.equal(n_asked(), 1)
    spec.passed(plugin:request(bearer("s3cret", { at = 1059 })))
    spec.equal(n_asked(), 1)
    spec.passed(plugin:request(bearer("s3cret", { at = 1061 })))
    spec.equal(n_asked(), 2)
    plugin:request(bearer "another")
    spec.equal(n_asked(), 3)
  end)

  it("keeps an answer no longer than the token lives", function(plugin)
    server { active = true, sub = "ada", exp = 1010 }
    spec.passed(plugin:request(bearer("s3cret", { at = 1000 })))
    spec.passed(plugin:request(bearer("s3cret", { at = 1009 })))
    spec.equal(n_asked(), 1)
    spec.passed(plugin:request(bearer("s3cret", { at = 1011 }))) -- within the leeway
    spec.equal(n_asked(), 2)
    spec.rejected(plugin:request(bearer("s3cret", { at = 1040 })), "auth.expired_token")
  end)

  it("keeps a refusal for a shorter time", function(plugin)
    server { active = false }
    spec.rejected(plugin:request(bearer("s3cret", { at = 1000 })), "auth.unknown_token")
    spec.rejected(plugin:request(bearer("s3cret", { at = 1004 })), "auth.unknown_token")
    spec.equal(n_asked(), 1)
    server { active = true, sub = "ada" }
    spec.passed(plugin:request(bearer("s3cret", { at = 1006 })))
  end)

  it("does not share answers between servers and clients", function(plugin)
    server { active = true, sub = "ada", email = "ada@example.com" }
    spec.passed(plugin:request(bearer "s3cret"))
    spec.passed(with(plugin, { url = "https://other.example/" }):request(bearer "s3cret"))
    spec.passed(with(plugin, { client_id = "other" }):request(bearer "s3cret"))
    local out = with(plugin, { principal = "email" }):request(bearer "s3cret")
    spec.set(out, "principal", { id = "ada@example.com" })
    spec.equal(n_asked(), 4)
  end)

  it("refuses a token that is over, or not yet good", function(plugin)
    server { active = true, sub = "ada", exp = 1000 }
    spec.passed(plugin:request(bearer("a", { at = 1029 })))
    local out = plugin:request(bearer("b", { at = 1030 }))
    spec.rejected(out, "auth.expired_token")
    spec.header(out, "www-authenticate", 'Bearer realm="streamgate", error="invalid_token"')
    server { active = true, sub = "ada", nbf = 2000 }
    spec.rejected(plugin:request(bearer("c", { at = 1969 })), "auth.unknown_token")
    spec.passed(plugin:request(bearer("d", { at = 1970 })))
    local strict = with(plugin, { leeway = "0s" })
    spec.rejected(strict:request(bearer("e", { at = 1999 })), "auth.unknown_token")
    spec.passed(strict:request(bearer("f", { at = 2000 })))
  end)

  it("takes times of any size", function(plugin)
    for idx, exp in ipairs { "1e300", "9223372036854775807", "0", "-5", "-1e300" } do
      server(('{"active":true,"sub":"ada","exp":%s}'):format(exp))
      local out = plugin:request(bearer("t" .. idx, { at = 1000 }))
      spec.equal(out.code, idx > 2 and "auth.expired_token" or nil)
    end
  end)

  it("wants the issuer that it was told", function(plugin)
    local strict = with(plugin, { issuer = "https://id.example" })
    local others = { '"https://id.example/"', '"https://ID.example"', "null", '["https://id.example"]', "7" }
    for idx, claim in ipairs(others) do
      server(('{"active":true,"sub":"ada","iss":%s}'):format(claim))
      spec.rejected(strict:request(bearer("a" .. idx)), "auth.unknown_token")
    end
    server { active = true, sub = "ada" }
    spec.rejected(strict:request(bearer "b"), "auth.unknown_token")
    server { active = true, sub = "ada", iss = "https://id.example" }
    spec.passed(strict:request(bearer "c"))
  end)

  it("wants one of the audiences that it was told", function(plugin)
    local strict = with(plugin, { audience = { "stream", "games" } })
    for idx, claim in ipairs { '"other"', '"stream games"', "[]", '["a","b"]', "null", '""' } do
      server(('{"active":true,"sub":"ada","aud":%s}'):format(claim))
      spec.rejected(strict:request(bearer("a" .. idx)), "auth.unknown_token")
    end
    for idx, claim in ipairs { '"stream"', '["other","games"]' } do
      server(('{"active":true,"sub":"ada","aud":%s}'):format(claim))
      spec.passed(strict:request(bearer("b" .. idx)))
    end
  end)

  it("wants all of the scopes that it was told", function(plugin)
    local strict = with(plugin, { scopes = { "stream:open", "stream:resume" } })
    for idx, claim in ipairs { '"stream:open"', '"stream:openstream:resume"', "null", '""', '["stream:open"]' } do
      server(('{"active":true,"sub":"ada","scope":%s}'):format(claim))
      local out = strict:request(bearer("a" .. idx))
      spec.rejected(out, "auth.insufficient_scope")
      spec.equal(out.status, 403)
      spec.header(
        out,
        "www-authenticate",
        'Bearer realm="streamgate", error="insufficient_scope", scope="stream:open stream:resume"'
      )
    end
    for idx, claim in ipairs { '"stream:resume other  stream:open"', '["stream:open","stream:resume"]' } do
      server(('{"active":true,"sub":"ada","scope":%s}'):format(claim))
      spec.passed(strict:request(bearer("b" .. idx)))
    end
  end)

  it("takes the principal from the claim that it was told", function(plugin)
    local named = with(plugin, { principal = "username", attributes = { "sub" } })
    server { active = true, sub = "1", username = "ada" }
    spec.set(named:request(bearer "a"), "principal", { id = "ada", sub = "1" })
    server { active = true, sub = "1" }
    spec.rejected(named:request(bearer "b"), "auth.unknown_token")
  end)

  it("takes no principal that cannot be one", function(plugin)
    for idx, claim in ipairs {
      "null",
      '""',
      '"-"',
      "true",
      "1.5",
      '["ada"]',
      '{"id":"ada"}',
      '"a\\u0000b"',
      '"a\\nb"',
      '"a\\u0085b"',
      '"' .. ("x"):rep(257) .. '"',
    } do
      server(('{"active":true,"sub":%s}'):format(claim))
      local out = plugin:request(bearer("a" .. idx))
      spec.rejected(out, "auth.unknown_token")
      spec.set(out, "principal", nil)
    end
    server '{"active":true,"sub":42}'
    spec.set(plugin:request(bearer "b"), "principal", { id = "42" })
  end)

  it("keeps attributes that can be kept, and leaves the others out", function(plugin)
    local curious = with(plugin, { attributes = { "groups", "level", "admin", "address", "nothing", "odd", "none" } })
    server(
      '{"active":true,"sub":"ada","groups":["a","b"],"level":3,"admin":false,'
        .. '"address":{"city":"x"},"nothing":null,"odd":[[1]]}'
    )
    local out = curious:request(bearer "a")
    spec.set(out, "principal", { id = "ada", groups = { "a", "b" }, level = 3, admin = false })
  end)

  it("knows which functions a principal may use", function(plugin)
    local bound = with(plugin, { functions_claim = "apps", attributes = {} })
    server { active = true, sub = "ada", apps = { "f1", "f2" } }
    spec.set(bound:request(bearer "a"), "principal", { id = "ada", functions = { "f1", "f2" } })
    server { active = true, sub = "ada", apps = "f1 f2" }
    spec.set(bound:request(bearer "b"), "principal", { id = "ada", functions = { "f1", "f2" } })
    server { active = true, sub = "ada" }
    spec.set(bound:request(bearer "c"), "principal", { id = "ada", functions = {} })
    server { active = true, sub = "ada", apps = 7 }
    spec.rejected(bound:request(bearer "d"), "auth.unavailable")
  end)

  it("keeps the token of a session, and not in the open", function(plugin)
    server { active = true, sub = "ada", exp = 5000 }
    local out = plugin:request(bearer("s3cret-s3cret", { websocket = true, at = 1000 }))
    local kept = out.set["introspection-auth"]
    spec.equal(kept.exp, 5000)
    spec.equal(kept.token:find("s3cret", 1, true), nil)
  end)

  it("ends a session whose token was withdrawn", function(plugin)
    server { active = true, sub = "ada" }
    local out = plugin:request(bearer("s3cret", { websocket = true, at = 1000 }))
    spec.passed(plugin:tick(session(out, 1030)))
    spec.equal(n_asked(), 1)
    spec.passed(plugin:tick(session(out, 1061)))
    spec.equal(n_asked(), 2)
    spec.equal(spec.requests()[2].body:find("token=s3cret", 1, true) ~= nil, true, "it asks about the same token")
    server { active = false }
    spec.passed(plugin:tick(session(out, 1100)))
    spec.rejected(plugin:tick(session(out, 1122)), "auth.unknown_token")
  end)

  it("ends a session whose token is over, or somebody else's now", function(plugin)
    server { active = true, sub = "ada", exp = 1100 }
    local out = plugin:request(bearer("s3cret", { websocket = true, at = 1000 }))
    spec.passed(plugin:tick(session(out, 1120)))
    spec.rejected(plugin:tick(session(out, 1130)), "auth.expired_token")
    server { active = true, sub = "mallory" }
    spec.rejected(plugin:tick(session(out, 1131)), "auth.unknown_token")
  end)

  it("ends a session whose token lost its scope", function(plugin)
    local strict = with(plugin, { scopes = { "stream" } })
    server { active = true, sub = "ada", scope = "stream" }
    local out = strict:request(bearer("s3cret", { websocket = true, at = 1000 }))
    server { active = true, sub = "ada", scope = "" }
    spec.rejected(strict:tick(session(out, 1061)), "auth.insufficient_scope")
  end)

  it("lets a session go on while the server is away, until the token is over", function(plugin)
    server { active = true, sub = "ada", exp = 2000 }
    local out = plugin:request(bearer("s3cret", { websocket = true, at = 1000 }))
    away()
    spec.passed(plugin:tick(session(out, 1900)))
    spec.rejected(plugin:tick(session(out, 2030)), "auth.expired_token")
    server { active = true, sub = "ada" }
    out = plugin:request(bearer("endless", { websocket = true }))
    away()
    spec.passed(plugin:tick(session(out, 9000)))
  end)

  it("lets a session go on after a change of the secret, as long as it knows until when", function(plugin)
    server { active = true, sub = "ada", exp = 2000 }
    local out = plugin:request(bearer("s3cret", { websocket = true, at = 1000 }))
    local changed = with(plugin, { client_secret = "env:OTHER" })
    spec.passed(changed:tick(session(out, 1500)))
    spec.rejected(changed:tick(session(out, 2030)), "auth.expired_token")
    server { active = true, sub = "ada" }
    out = plugin:request(bearer("endless", { websocket = true }))
    spec.rejected(changed:tick(session(out, 2031)), "auth.unknown_token")
  end)

  it("lets a session be that another plugin let in", function(plugin)
    spec.passed(plugin:tick { principal = { id = "somebody" } })
  end)

  it("names the realm it was told", function(plugin)
    local out = with(plugin, { realm = 'the "lab"' }):request {}
    spec.header(out, "www-authenticate", 'Bearer realm="the \\"lab\\""')
  end)

  it("refuses settings that make no sense", function()
    local function refused(more, message)
      local all = { url = url, client_id = "gate way", client_secret = "env:CLIENT" }
      for key, value in pairs(more) do
        all[key] = value
      end
      spec.refused(all, message)
    end
    spec.refused({ client_id = "a", client_secret = "env:CLIENT" }, "url")
    local slow = { url = url, client_id = "a", client_secret = "env:CLIENT", request_timeout = "60s" }
    spec.refused(slow, "the step itself may wait for 60s only")
    spec.refused({ url = url, client_secret = "env:CLIENT" }, "client_id")
    spec.refused({ url = url, client_id = "a" }, "client_secret")
    refused({ url = "id.example" }, "url")
    refused({ client_auth = "jwt" }, "client_auth")
    refused({ scopes = { "a b" } }, "scopes: expected names")
    refused({ scopes = { 'a"' } }, "scopes: expected names")
    refused({ scopes = { "a\\" } }, "scopes: expected names")
    refused({ scopes = { "" } }, "scopes: expected names")
    refused({ attributes = { "id" } }, "`id` comes from `principal`")
    refused({ attributes = { "functions" } }, "`functions` comes from `functions_claim`")
    refused({ cache = "0s" }, "cache")
  end)
end)
