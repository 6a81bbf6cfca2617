--- spec.lua: what key-auth promises.

local spec = require "streamgate.spec"

local keys = spec.tokens {
  ada = "s3cret",
  bob = { token = "hunter2", tenant = "acme", functions = { "f00d" } },
  eve = { token = "visitor", expires = "1970-01-01T00:16:40Z" }, -- 1000 s after the epoch
}

local everywhere = { "header:x-api-key", "cookie:key", "query:key", "subprotocol" }

return spec.plugin("key-auth", { keys = keys }, function(it)
  it("refuses a request without a key", function(plugin)
    local out = plugin:request { path = "/sign_in" }
    spec.rejected(out, "auth.missing_key")
    spec.equal(out.status, 401)
    spec.header(out, "www-authenticate", 'ApiKey realm="streamgate"')
  end)

  it("refuses a key that it does not know", function(plugin)
    local out = plugin:request { headers = { ["x-api-key"] = "guess" } }
    spec.rejected(out, "auth.unknown_key")
    spec.header(out, "www-authenticate", 'ApiKey realm="streamgate"')
  end)

  it("tells later plugins who is asking", function(plugin)
    local out = plugin:request { headers = { ["x-api-key"] = "s3cret" } }
    spec.passed(out)
    spec.set(out, "principal", { id = "ada" })
    out = plugin:request { headers = { ["X-API-Key"] = "hunter2" } }
    spec.set(out, "principal", { id = "bob", tenant = "acme", functions = { "f00d" } })
  end)

  it("keeps the key from the function", function(plugin)
    local out = plugin:request { headers = { ["x-api-key"] = "s3cret", accept = "*/*" } }
    spec.upstream(out, "x-api-key", nil)
    spec.upstream(out, "accept", "*/*")
    local by_cookie = plugin:with { keys = keys, from = { "cookie:key", "header:x-other" } }
    out = by_cookie:request { headers = { cookie = "key=s3cret", ["x-other"] = "hunter2" } }
    spec.passed(out)
    spec.upstream(out, "x-other", nil)
    spec.upstream(out, "cookie", nil)
  end)

  it("looks only where it is told to", function(plugin)
    spec.rejected(plugin:request { query = "x-api-key=s3cret&key=s3cret" }, "auth.missing_key")
    spec.rejected(plugin:request { headers = { cookie = "x-api-key=s3cret" } }, "auth.missing_key")
    spec.rejected(plugin:request { headers = { authorization = "Bearer s3cret" } }, "auth.missing_key")
    local offer = { ["sec-websocket-protocol"] = "authorization.s3cret, streamgate.v1" }
    spec.rejected(plugin:request { headers = offer }, "auth.missing_key")
  end)

  it("finds the key in a cookie, a query or an entry when it is told to", function(plugin)
    local all = plugin:with { keys = keys, from = everywhere }
    for _, request in ipairs {
      { headers = { ["x-api-key"] = "s3cret" } },
      { headers = { cookie = "a=b; key=s3cret; c=d" } },
      { query = "a=b&key=s3cret" },
      { query = "key=s%33cret" },
      { headers = { ["sec-websocket-protocol"] = "authorization.s3cret, streamgate.v1" } },
      { headers = { ["sec-websocket-protocol"] = "streamgate.v1, Authorization-Bearer.s3cret" } },
    } do
      local out = all:request(request)
      spec.passed(out)
      spec.set(out, "principal", { id = "ada" })
    end
  end)

  it("takes the first place that has a key, and asks no other", function(plugin)
    local all = plugin:with { keys = keys, from = everywhere }
    local out = all:request { headers = { ["x-api-key"] = "guess", cookie = "key=s3cret" } }
    spec.rejected(out, "auth.unknown_key")
    out = all:request { headers = { ["x-api-key"] = "", cookie = "key=s3cret" } }
    spec.rejected(out, "auth.missing_key")
    out = all:request { headers = { cookie = "key=hunter2" }, query = "key=s3cret" }
    spec.equal(out.set.principal.id, "bob")
  end)

  it("takes the key as a whole", function(plugin)
    for _, value in ipairs { "s3cre", "s3crets", "S3CRET", "Bearer s3cret", "s3cret, s3cret", '"s3cret"' } do
      spec.rejected(plugin:request { headers = { ["x-api-key"] = value } }, "auth.unknown_key")
    end
  end)

  it("is not troubled by what no key looks like", function(plugin)
    for _, value in ipairs { "\xff\xfe", ("k"):rep(60000), "\u{1F511}", "%00", "' or 1=1 --" } do
      spec.rejected(plugin:request { headers = { ["x-api-key"] = value } }, "auth.unknown_key")
    end
    local all = plugin:with { keys = keys, from = everywhere }
    spec.rejected(all:request { query = "key=%00%ff&key=s3cret" }, "auth.unknown_key")
    spec.rejected(all:request { query = "key" }, "auth.missing_key")
    spec.rejected(all:request { query = "&&=&key=" }, "auth.missing_key")
    spec.rejected(all:request { headers = { cookie = "key" } }, "auth.missing_key")
  end)

  it("refuses a header that came twice with no good key", function(plugin)
    local out = plugin:request { headers = { ["x-api-key"] = "guess", ["X-API-KEY"] = "another" } }
    spec.rejected(out, "auth.unknown_key")
  end)

  it("refuses a key that has expired", function(plugin)
    local headers = { ["x-api-key"] = "visitor" }
    local out = plugin:request { headers = headers, at = 999 }
    spec.set(out, "principal", { id = "eve", expires = 1000 })
    out = plugin:request { headers = headers, at = 1000 }
    spec.rejected(out, "auth.expired_key")
    spec.header(out, "www-authenticate", 'ApiKey realm="streamgate"')
  end)

  it("ends a session whose key has expired or was withdrawn", function(plugin)
    local out = plugin:request { headers = { ["x-api-key"] = "visitor" }, at = 1 }
    local session = { principal = out.set.principal, set = { ["key-auth"] = out.set["key-auth"] }, at = 999 }
    spec.passed(plugin:tick(session))
    session.at = 1000
    spec.rejected(plugin:tick(session), "auth.expired_key")
    local others = plugin:with { keys = spec.tokens { eve = "another", mallory = "visitor" } }
    spec.rejected(others:tick(session), "auth.unknown_key")
    spec.rejected(plugin:with({ keys = spec.tokens {} }):tick(session), "auth.unknown_key")
  end)

  it("does not keep the key itself", function(plugin)
    local out = plugin:request { headers = { ["x-api-key"] = "s3cret" } }
    spec.equal(out.set["key-auth"]:find("s3cret", 1, true), nil)
  end)

  it("lets a session be that another plugin let in", function(plugin)
    spec.passed(plugin:tick { principal = { id = "somebody" } })
  end)

  it("names the realm it was told", function(plugin)
    local out = plugin:with({ keys = keys, realm = 'the "lab"' }):request {}
    spec.header(out, "www-authenticate", 'ApiKey realm="the \\"lab\\""')
  end)

  it("wants places that it can look at", function()
    for _, from in ipairs { "x-api-key", "header:", "body:key", "subprotocol:key", "header:a b", "Header:a" } do
      spec.refused({ keys = keys, from = { from } }, "is no place")
    end
    spec.refused({ keys = keys, from = {} }, "at least one place")
    spec.refused({}, "keys")
  end)
end)
