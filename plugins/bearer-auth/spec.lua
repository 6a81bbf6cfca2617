--- spec.lua: what bearer-auth promises.

local spec = require "streamgate.spec"

local tokens = spec.tokens {
  ada = "s3cret",
  bob = { token = "hunter2", tenant = "acme", functions = { "f00d" } },
  eve = { token = "visitor", expires = "1970-01-01T00:16:40Z" }, -- 1000 s after the epoch
}

return spec.plugin("bearer-auth", { tokens = tokens }, function(it)
  it("refuses a request without a token", function(plugin)
    local out = plugin:request { path = "/sign_in" }
    spec.rejected(out, "auth.missing_token")
    spec.header(out, "www-authenticate", 'Bearer realm="streamgate"')
  end)

  it("refuses a token that it does not know", function(plugin)
    local out = plugin:request { headers = { authorization = "Bearer guess" } }
    spec.rejected(out, "auth.unknown_token")
    spec.header(out, "www-authenticate", 'Bearer realm="streamgate", error="invalid_token"')
  end)

  it("tells later plugins who is asking", function(plugin)
    local out = plugin:request { path = "/sign_in", headers = { authorization = "Bearer s3cret" } }
    spec.passed(out)
    spec.set(out, "principal", { id = "ada" })
  end)

  it("knows the attributes and the functions of a principal", function(plugin)
    local out = plugin:request { headers = { authorization = "bearer hunter2" } }
    spec.set(out, "principal", { id = "bob", tenant = "acme", functions = { "f00d" } })
  end)

  it("takes the token from where a browser can put it", function(plugin)
    for _, offer in ipairs {
      "authorization-bearer.s3cret, streamgate.v1",
      "x-nv-sessionid.1, Authorization-Bearer.s3cret",
      "authorization.s3cret",
    } do
      spec.passed(plugin:request { headers = { ["sec-websocket-protocol"] = offer } })
    end
  end)

  it("does not let an entry overrule the header", function(plugin)
    local headers = { authorization = "Basic YWRh", ["sec-websocket-protocol"] = "authorization-bearer.s3cret" }
    spec.rejected(plugin:request { headers = headers }, "auth.missing_token")
  end)

  it("takes nothing that only looks like a token", function(plugin)
    for _, value in ipairs { "Bearer", "Bearer ", "s3cret", "Bearer s3cret extra", "Bearers3cret", "Token s3cret" } do
      spec.rejected(plugin:request { headers = { authorization = value } }, "auth.missing_token")
    end
  end)

  it("refuses a token that has expired", function(plugin)
    local headers = { authorization = "Bearer visitor" }
    local out = plugin:request { headers = headers, at = 999 }
    spec.set(out, "principal", { id = "eve", expires = 1000 })
    out = plugin:request { headers = headers, at = 1000 }
    spec.rejected(out, "auth.expired_token")
    spec.header(out, "www-authenticate", 'Bearer realm="streamgate", error="invalid_token"')
  end)

  it("ends a session whose token has expired or was withdrawn", function(plugin)
    local out = plugin:request { headers = { authorization = "Bearer visitor" } }
    local session = { principal = out.set.principal, set = { ["bearer-auth"] = out.set["bearer-auth"] }, at = 999 }
    spec.passed(plugin:tick(session))
    session.at = 1000
    spec.rejected(plugin:tick(session), "auth.expired_token")
    local others = plugin:with { tokens = spec.tokens { eve = "another", mallory = "visitor" } }
    spec.rejected(others:tick(session), "auth.unknown_token")
    spec.rejected(plugin:with({ tokens = spec.tokens {} }):tick(session), "auth.unknown_token")
  end)

  it("lets a session be that another plugin let in", function(plugin)
    spec.passed(plugin:tick { principal = { id = "somebody" } })
  end)

  it("names the realm it was told", function(plugin)
    local out = plugin:with({ tokens = tokens, realm = 'the "lab"' }):request {}
    spec.header(out, "www-authenticate", 'Bearer realm="the \\"lab\\""')
  end)
end)
