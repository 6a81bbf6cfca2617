--- spec.lua: what jwt-auth promises.

local spec = require "streamgate.spec"

local ISSUER = "https://id.example"
local KEYS = "https://id.example/keys"

local SECRET = ("k"):rep(32)

local settings = { jwks_url = KEYS, issuer = { ISSUER }, audience = { "gateway" } }

--- The settings with others in their place; false takes one out.
local function but(changes)
  local changed = {}
  for key, value in pairs(settings) do
    changed[key] = value
  end
  for key, value in pairs(changes) do
    changed[key] = value or nil
  end
  return changed
end

--- Claims that are good at 1000 s after the epoch, with others in their place; false takes one out.
local function claims(changes)
  local made = { iss = ISSUER, sub = "ada", aud = "gateway", exp = 2000 }
  for key, value in pairs(changes or {}) do
    made[key] = value
  end
  for key, value in pairs(changes or {}) do
    if value == false then
      made[key] = nil
    end
  end
  return made
end

--- The issuer, as far as the gateway sees it.
local function issuer()
  spec.http(function(request)
    if request.url == KEYS then
      return { status = 200, headers = { ["content-type"] = "application/json" }, body = spec.jwks() }
    elseif request.url == ISSUER .. "/.well-known/openid-configuration" then
      local document = ('{"issuer":"%s","jwks_uri":"%s"}'):format(ISSUER, KEYS)
      return { status = 200, headers = { ["content-type"] = "application/json" }, body = document }
    end
    return { status = 404, headers = {}, body = "" }
  end)
end

local function bearing(token, at)
  return { headers = { authorization = "Bearer " .. token }, at = at or 1000 }
end

--- Sends a token with these claims.
local function send(plugin, changes, at)
  issuer()
  return plugin:request(bearing(spec.jwt(claims(changes)), at))
end

local INVALID = 'Bearer realm="streamgate", error="invalid_token"'

return spec.plugin("jwt-auth", settings, function(it)
  it("refuses a request without a token", function(plugin)
    local out = plugin:request { path = "/sign_in" }
    spec.rejected(out, "auth.missing_token")
    spec.equal(out.status, 401)
    spec.header(out, "www-authenticate", 'Bearer realm="streamgate"')
  end)

  it("tells later plugins who is asking", function(plugin)
    local out = send(plugin, { tenant = "blue", level = 7, staff = true, groups = { "a", "b" } })
    spec.passed(out)
    spec.set(out, "principal", {
      id = "ada",
      sub = "ada",
      iss = ISSUER,
      expires = 2000,
      tenant = "blue",
      level = 7,
      staff = true,
      groups = { "a", "b" },
    })
  end)

  it("refuses a token that is not for it", function(plugin)
    for _, changes in ipairs {
      { aud = "another" },
      { aud = { "another", "third" } },
      { aud = false },
      { iss = "https://evil.example" },
      { iss = false },
      { iss = ISSUER .. "/" },
      { nbf = 1031 },
      { exp = false },
      { exp = "2000" },
    } do
      local out = send(plugin, changes)
      spec.rejected(out, "auth.unknown_token")
      spec.equal(out.status, 401)
      spec.header(out, "www-authenticate", INVALID)
      spec.set(out, "principal", nil)
    end
    spec.passed(send(plugin, { aud = { "another", "gateway" } }))
  end)

  it("refuses a token that has expired", function(plugin)
    spec.passed(send(plugin, { exp = 1000 }, 1029))
    local out = send(plugin, { exp = 1000 }, 1031)
    spec.rejected(out, "auth.expired_token")
    spec.header(out, "www-authenticate", INVALID)
  end)

  it("allows the clocks to differ as much as it is told to", function(plugin)
    local strict = plugin:with(but { leeway = "0s" })
    spec.rejected(send(strict, { exp = 1000 }, 1001), "auth.expired_token")
    spec.rejected(send(strict, { nbf = 1001 }, 1000), "auth.unknown_token")
    spec.passed(send(strict, { nbf = 1000 }, 1000))
  end)

  it("refuses a token that was tampered with", function(plugin)
    issuer()
    local good = spec.jwt(claims())
    local head, body, signature = good:match "^([^.]+)%.([^.]+)%.([^.]+)$"
    local _, other_body = spec.jwt(claims { sub = "mallory" }):match "^([^.]+)%.([^.]+)"
    local middle = #signature // 2
    local flipped = signature:sub(middle, middle) == "A" and "B" or "A"
    for _, token in ipairs {
      head .. "." .. other_body .. "." .. signature,
      head .. "." .. body .. "." .. signature:sub(1, middle - 1) .. flipped .. signature:sub(middle + 1),
      head .. "." .. body .. "." .. signature:sub(1, -5),
      head .. "." .. body .. ".AAAA",
      "eyJhbGciOiJub25lIn0." .. body .. ".AAAA", -- {"alg":"none"}
    } do
      local out = plugin:request(bearing(token))
      spec.rejected(out, "auth.unknown_token")
      spec.header(out, "www-authenticate", INVALID)
    end
    spec.passed(plugin:request(bearing(good)))
  end)

  it("refuses what is no token at all", function(plugin)
    issuer()
    for _, token in ipairs {
      "guess",
      "a.b",
      "a.b.c",
      "..",
      "eyJhbGciOiJub25lIn0.e30.",
      "a.b.c.d.e",
      "\xff.\xfe.\xfd",
      "a." .. ("b"):rep(20000) .. ".c",
      ("a."):rep(10000),
      ("%s.%s.%s"):format(("A"):rep(5000), ("A"):rep(5000), ("A"):rep(5000)),
    } do
      spec.rejected(plugin:request(bearing(token)), "auth.unknown_token")
    end
    spec.equal(#spec.requests() <= 1, true, "what is no token does not trouble the issuer")
  end)

  it("refuses a token of an unknown key", function(plugin)
    local keys = spec.jwks()
    spec.http(function()
      return { status = 200, headers = {}, body = keys }
    end)
    local token = spec.jwt(claims(), { kid = "nobody-knows-this-one" })
    spec.rejected(plugin:request(bearing(token)), "auth.unknown_token")
    spec.passed(plugin:request(bearing(spec.jwt(claims()))))
  end)

  it("says so when the keys cannot be had", function(plugin)
    for _, answer in ipairs {
      function()
        return nil, "timeout"
      end,
      function()
        return { status = 500, headers = {}, body = "" }
      end,
      function()
        return { status = 200, headers = {}, body = "<html>" }
      end,
    } do
      spec.http(answer)
      local out = plugin:request(bearing(spec.jwt(claims())))
      spec.rejected(out, "auth.keys_unavailable")
      spec.equal(out.status, 503)
      spec.header(out, "retry-after", "5")
      spec.header(out, "www-authenticate", nil)
    end
  end)

  it("finds the keys of an issuer by its discovery document", function(plugin)
    local discovering = plugin:with { discover = ISSUER, audience = { "gateway" } }
    spec.passed(send(discovering))
    spec.rejected(send(discovering, { iss = "https://evil.example" }), "auth.unknown_token")
  end)

  it("takes only the algorithms that it is told to", function(plugin)
    spec.rejected(send(plugin:with(but { algorithms = { "RS256" } })), "auth.unknown_token")
    local eddsa = plugin:with(but { algorithms = { "EdDSA" } })
    issuer()
    spec.passed(eddsa:request(bearing(spec.jwt(claims(), { kid = "ed", algorithm = "EdDSA" }))))
    spec.rejected(eddsa:request(bearing(spec.jwt(claims()))), "auth.unknown_token")
  end)

  it("takes tokens that are signed with a shared secret, when it has one", function(plugin)
    local shared = plugin:with(but { jwks_url = false, secret = spec.file(SECRET) })
    spec.passed(shared:request(bearing(spec.jwt(claims(), { secret = SECRET }))))
    local guess = spec.jwt(claims(), { secret = ("x"):rep(32) })
    spec.rejected(shared:request(bearing(guess)), "auth.unknown_token")
    spec.rejected(shared:request(bearing(spec.jwt(claims()))), "auth.unknown_token")
  end)

  it("takes keys from a file", function(plugin)
    local filed = plugin:with(but { jwks_url = false, keys = spec.file(spec.jwks()) })
    spec.passed(filed:request(bearing(spec.jwt(claims()))))
    spec.rejected(filed:request(bearing(spec.jwt(claims(), { kid = "not-in-the-file" }))), "auth.unknown_token")
    spec.rejected(filed:request(bearing(spec.jwt(claims { aud = "another" }))), "auth.unknown_token")
    spec.equal(spec.requests(), {})
  end)

  it("does not take a public key for a secret", function(plugin)
    issuer()
    local keys = spec.jwks()
    local forged = spec.jwt(claims(), { secret = keys })
    spec.rejected(plugin:request(bearing(forged)), "auth.unknown_token")
    local filed = plugin:with(but { jwks_url = false, keys = spec.file(keys) })
    spec.rejected(filed:request(bearing(forged)), "auth.unknown_token")
  end)

  it("finds the token where it is told to look", function(plugin)
    local token = spec.jwt(claims())
    local offer = { ["sec-websocket-protocol"] = "authorization-bearer." .. token .. ", streamgate.v1" }
    issuer()
    spec.passed(plugin:request { headers = offer, at = 1000 })
    local elsewhere = plugin:with(but { from = { "subprotocol", "header:x-token", "cookie:token", "query:token" } })
    for _, request in ipairs {
      { headers = offer },
      { headers = { ["sec-websocket-protocol"] = "authorization." .. token .. ", streamgate.v1" } },
      { headers = { ["x-token"] = token } },
      { headers = { cookie = "a=b; token=" .. token } },
      { query = "a=b&token=" .. token },
    } do
      request.at = 1000
      local out = elsewhere:request(request)
      spec.passed(out)
      spec.upstream(out, "x-token", nil)
    end
    for _, request in ipairs {
      { headers = { authorization = "Bearer " .. token } },
      { headers = { ["x-token"] = "", cookie = "token=" .. token } },
      { headers = { cookie = "token" } },
      { query = "token=" },
    } do
      spec.rejected(elsewhere:request(request), "auth.missing_token")
    end
    spec.rejected(plugin:request { headers = { cookie = "token=" .. token } }, "auth.missing_token")
    spec.rejected(plugin:request { query = "token=" .. token }, "auth.missing_token")
  end)

  it("asks no other place when one has a token, or another scheme was chosen", function(plugin)
    local both = plugin:with(but { from = { "bearer", "cookie:token" } })
    issuer()
    local cookie = "token=" .. spec.jwt(claims())
    spec.passed(both:request { headers = { cookie = cookie }, at = 1000 })
    local out = both:request { headers = { authorization = "Bearer guess", cookie = cookie }, at = 1000 }
    spec.rejected(out, "auth.unknown_token")
    out = both:request { headers = { authorization = "Basic YWRh", cookie = cookie }, at = 1000 }
    spec.rejected(out, "auth.missing_token")
  end)

  it("keeps a header with a token from the function", function(plugin)
    local other = plugin:with(but { from = { "header:x-token" } })
    issuer()
    local out = other:request { headers = { ["x-token"] = spec.jwt(claims()), accept = "*/*" }, at = 1000 }
    spec.passed(out)
    spec.upstream(out, "x-token", nil)
    spec.upstream(out, "accept", "*/*")
  end)

  it("takes the id from the claim that it is told to", function(plugin)
    local by_mail = plugin:with(but { principal = "email", attributes = {} })
    spec.set(send(by_mail, { email = "ada@example.com" }), "principal", { id = "ada@example.com", expires = 2000 })
    local nested = plugin:with(but { principal = "user.name", attributes = {} })
    spec.equal(send(nested, { user = { name = "ada" } }).set.principal.id, "ada")
    spec.equal(send(nested, { ["user.name"] = "eve", user = { name = "ada" } }).set.principal.id, "eve")
    spec.equal(send(plugin, { sub = 42 }).set.principal.id, "42")
  end)

  it("refuses a token that does not say who has it", function(plugin)
    local long = ("a"):rep(257)
    for _, sub in ipairs { "", "-", "a\nb", "a\0b", "a\u{85}b", long, 4.5, true, { "ada" }, { name = "ada" } } do
      local out = send(plugin, { sub = sub })
      spec.rejected(out, "auth.unknown_token")
      spec.header(out, "www-authenticate", INVALID)
    end
    spec.rejected(send(plugin, { sub = false }), "auth.unknown_token")
    spec.equal(send(plugin, { sub = ("a"):rep(256) }).set.principal.id, ("a"):rep(256))
  end)

  it("makes attributes of the claims that are listed", function(plugin)
    local listed = plugin:with(but { attributes = { "tenant", "roles=realm_access.roles", "absent", "deep=a.b.c" } })
    local out = send(listed, {
      tenant = "blue",
      realm_access = { roles = { "admin", { "x" }, "user" } },
      a = { b = "no table" },
      email = "ada@example.com",
    })
    spec.set(out, "principal", { id = "ada", expires = 2000, tenant = "blue", roles = { "admin", "user" } })
  end)

  it("lets no claim pass for what the gateway says", function(plugin)
    local out = send(plugin, { id = "root", functions = { "f1" }, expires = 9999999 })
    spec.equal(out.set.principal.id, "ada")
    spec.equal(out.set.principal.functions, nil)
    spec.equal(out.set.principal.expires, 2000)
  end)

  it("bounds what a session keeps of a token", function(plugin)
    local many = { long = ("x"):rep(1025), short = ("x"):rep(1024), list = {}, deep = { a = { b = 1 } } }
    for idx = 1, 100 do
      many[("a%03d"):format(idx)] = idx
      many.list[idx] = "i"
    end
    local principal = send(plugin:with(but { attributes = { "list", "long", "short" } }), many).set.principal
    spec.equal(#principal.list, 100)
    spec.equal(principal.long, nil)
    spec.equal(#principal.short, 1024)
    local n_attributes = 0
    for _ in pairs(send(plugin, many).set.principal) do
      n_attributes = n_attributes + 1
    end
    spec.equal(n_attributes, 32 + 2) -- and id and expires
  end)

  it("takes the functions from the claim that it is told to", function(plugin)
    local bound = plugin:with(but { functions = "fn" })
    spec.equal(send(bound, { fn = { "f1", "f2" } }).set.principal.functions, { "f1", "f2" })
    spec.equal(send(bound, { fn = "f1 f2" }).set.principal.functions, { "f1", "f2" })
    spec.equal(send(bound, { fn = { "f1", 7, { "f3" } } }).set.principal.functions, { "f1" })
    for _, fn in ipairs { {}, "", 7, true, { a = "f1" } } do
      spec.equal(send(bound, { fn = fn }).set.principal.functions, {})
    end
    spec.equal(send(bound).set.principal.functions, {})
    spec.equal(send(plugin, { fn = "f1" }).set.principal.functions, nil)
  end)

  it("asks for scopes", function(plugin)
    local scoped = plugin:with(but { scopes = { "stream", "view" } })
    for _, changes in ipairs {
      { scope = "view stream x" },
      { scp = { "stream", "view" } },
      { scope = "view", scp = "stream" },
    } do
      spec.passed(send(scoped, changes))
    end
    for _, changes in ipairs {
      {},
      { scope = "stream" },
      { scope = "streams viewer" },
      { scope = "stream,view" },
      { scope = 7 },
    } do
      local out = send(scoped, changes)
      spec.rejected(out, "auth.insufficient_scope")
      spec.equal(out.status, 403)
      local challenge = 'Bearer realm="streamgate", error="insufficient_scope", scope="stream view"'
      spec.header(out, "www-authenticate", challenge)
    end
  end)

  it("asks for claims", function(plugin)
    local wanted = { email_verified = "true", ["org.id"] = "7", groups = "users", plan = "*" }
    local asking = plugin:with(but { claims = wanted })
    local good = { email_verified = true, org = { id = 7 }, groups = { "a", "users" }, plan = "x" }
    spec.passed(send(asking, good))
    local others = { email_verified = false, org = { id = 8 }, groups = { "a", { "users" } }, plan = false }
    for name, value in pairs(others) do
      local changes = {}
      for key, it in pairs(good) do
        changes[key] = it
      end
      changes[name] = value
      local out = send(asking, changes)
      spec.rejected(out, "auth.forbidden")
      spec.equal(out.status, 403)
      spec.header(out, "www-authenticate", 'Bearer realm="streamgate", error="insufficient_scope"')
    end
  end)

  it("takes tokens for anybody only when it is told to", function(plugin)
    local any = plugin:with(but { audience = { "*" } })
    spec.passed(send(any, { aud = "another" }))
    spec.passed(send(any, { aud = false }))
  end)

  it("takes one type of token when it is told to", function(plugin)
    spec.rejected(send(plugin:with(but { token_type = "at+jwt" })), "auth.unknown_token")
  end)

  it("ends a session whose token has expired", function(plugin)
    local set = send(plugin).set
    local session = { principal = set.principal, set = { ["jwt-auth"] = set["jwt-auth"] }, at = 2029 }
    spec.passed(plugin:tick(session))
    session.at = 2030
    spec.rejected(plugin:tick(session), "auth.expired_token")
  end)

  it("lets a session be that another plugin let in", function(plugin)
    spec.passed(plugin:tick { principal = { id = "somebody" }, at = 1e9 })
  end)

  it("names the realm it was told", function(plugin)
    local out = plugin:with(but { realm = 'the "lab"' }):request {}
    spec.header(out, "www-authenticate", 'Bearer realm="the \\"lab\\""')
  end)

  it("wants one kind of key, and algorithms that go with it", function()
    spec.refused({ audience = { "gateway" } }, "exactly one")
    spec.refused(but { discover = ISSUER }, "exactly one")
    spec.refused(but { secret = spec.file(SECRET) }, "exactly one")
    spec.refused(but { jwks_url = false, secret = spec.file "short" }, "at least 32 bytes")
    spec.refused(but { algorithms = { "HS256" } }, "does not go with this kind of key")
    spec.refused(but { algorithms = { "none" } }, "does not go with this kind of key")
    spec.refused(but { algorithms = {} }, "name at least one")
    spec.refused(
      but { jwks_url = false, secret = spec.file(SECRET), algorithms = { "RS256" } },
      "does not go with this kind of key"
    )
    spec.refused(but { jwks_url = "id.example/keys" }, "jwks_url")
  end)

  it("wants settings that mean something", function()
    spec.refused(but { audience = false }, "audience")
    spec.refused(but { audience = {} }, "audience")
    spec.refused(but { issuer = {} }, "issuer")
    spec.refused(but { from = {} }, "at least one place")
    spec.refused(but { from = { "token" } }, "is no place")
    spec.refused(but { from = { "subprotocol:token" } }, "is no place")
    spec.refused(but { from = { "cookie:" } }, "is no place")
    spec.refused(but { scopes = { "a b" } }, "is no scope")
    spec.refused(but { scopes = { 'a"b' } }, "is no scope")
    spec.refused(but { attributes = { "id" } }, "cannot be an attribute")
    spec.refused(but { attributes = { "functions=fn" } }, "cannot be an attribute")
    spec.refused(but { leeway = "1h" }, "leeway")
  end)
end)
