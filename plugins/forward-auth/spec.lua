--- spec.lua: what forward-auth promises.

local spec = require "streamgate.spec"

local url = "http://auth.example:9091/verify"

--- A service that gives one answer to all.
local function service(status, headers)
  spec.http(function()
    return { status = status, headers = headers or {}, body = "" }
  end)
end

local function asked()
  local requests = spec.requests()
  return requests[#requests], #requests
end

return spec.plugin("forward-auth", { url = url }, function(it)
  it("lets in whom the service lets in", function(plugin)
    for _, status in ipairs { 200, 202, 204, 299 } do
      service(status, { ["remote-user"] = "ada" })
      local out = plugin:request {}
      spec.passed(out)
      spec.set(out, "principal", { id = "ada" })
    end
  end)

  it("says what is asked for, and by whom", function(plugin)
    service(200, { ["remote-user"] = "ada" })
    plugin:request {
      method = "POST",
      path = "/sign_in",
      query = "token=secret",
      tls = true,
      client_ip = "192.0.2.7",
      headers = {
        host = "stream.example",
        authorization = "Bearer s3cret",
        cookie = "a=b",
        ["user-agent"] = "Browser/1.0",
        ["x-forwarded-for"] = "198.51.100.1",
        ["x-forwarded-method"] = "GET",
        ["x-forwarded-uri"] = "/public",
        ["x-forwarded-host"] = "other.example",
        ["x-forwarded-proto"] = "gopher",
      },
    }
    local request = asked()
    spec.equal(request.method, "GET")
    spec.equal(request.url, url)
    spec.equal(request.headers.authorization, "Bearer s3cret")
    spec.equal(request.headers.cookie, "a=b")
    spec.equal(request.headers["user-agent"] ~= "Browser/1.0", true)
    spec.equal(request.headers["x-forwarded-for"], "192.0.2.7")
    spec.equal(request.headers["x-forwarded-method"], "POST")
    spec.equal(request.headers["x-forwarded-uri"], "/sign_in")
    spec.equal(request.headers["x-forwarded-host"], "stream.example")
    spec.equal(request.headers["x-forwarded-proto"], "https")
  end)

  it("sends the query when it is told to", function(plugin)
    service(200, { ["remote-user"] = "ada" })
    local with_query = plugin:with { url = url, send_query = true }
    with_query:request { path = "/a", query = "b=c&d=%20" }
    spec.equal(asked().headers["x-forwarded-uri"], "/a?b=c&d=%20")
    with_query:request { path = "/a" }
    spec.equal(asked().headers["x-forwarded-uri"], "/a")
  end)

  it("sends the headers that it is told to, and no others", function(plugin)
    service(200, { ["remote-user"] = "ada" })
    local chosen = plugin:with { url = url, send_headers = { "X-Api-Key" } }
    chosen:request { headers = { authorization = "Bearer s3cret", cookie = "a=b", ["x-api-key"] = "k" } }
    local request = asked()
    spec.equal(request.headers["x-api-key"], "k")
    spec.equal(request.headers.authorization, nil)
    spec.equal(request.headers.cookie, nil)
  end)

  it("sends the token of a WebSocket as a header", function(plugin)
    service(200, { ["remote-user"] = "ada" })
    local headers = { ["sec-websocket-protocol"] = "authorization-bearer.s3cret, streamgate.v1" }
    spec.passed(plugin:request { websocket = true, headers = headers })
    spec.equal(asked().headers.authorization, "Bearer s3cret")
    headers.authorization = "Basic YWRh"
    plugin:request { websocket = true, headers = headers }
    spec.equal(asked().headers.authorization, "Basic YWRh")
  end)

  it("hands a browser the refusal of the service", function(plugin)
    service(401, { ["www-authenticate"] = 'Basic realm="lab"', location = "https://id.example/", ["x-other"] = "1" })
    local out = plugin:request {}
    spec.rejected(out, "auth.refused")
    spec.equal(out.status, 401)
    spec.header(out, "www-authenticate", 'Basic realm="lab"')
    spec.header(out, "location", "https://id.example/")
    spec.header(out, "x-other", nil)
    service(403)
    out = plugin:request {}
    spec.rejected(out, "auth.forbidden")
    spec.header(out, "www-authenticate", nil)
  end)

  it("refuses a WebSocket without headers that no script could read", function(plugin)
    service(401, { ["www-authenticate"] = "Basic", location = "https://id.example/" })
    local out = plugin:request { websocket = true }
    spec.rejected(out, "auth.refused")
    spec.header(out, "www-authenticate", nil)
    spec.header(out, "location", nil)
    service(403)
    spec.rejected(plugin:request { websocket = true }, "auth.forbidden")
    service(302, { location = "https://id.example/" })
    spec.rejected(plugin:request { websocket = true }, "auth.refused")
  end)

  it("sends a plain request to where one signs in", function(plugin)
    for _, status in ipairs { 302, 303, 307 } do
      service(status, { location = "https://id.example/?rd=x" })
      local out = plugin:request {}
      spec.responded(out, status)
      spec.header(out, "location", "https://id.example/?rd=x")
      spec.header(out, "cache-control", "no-store")
    end
  end)

  it("lets nobody in when the service gives no answer that can be used", function(plugin)
    for _, reason in ipairs { "timeout", "unreachable", "tls", "broken" } do
      spec.http(function()
        return nil, reason
      end)
      spec.rejected(plugin:request {}, "auth.unavailable")
    end
    for _, status in ipairs { 100, 301, 302, 304, 308, 400, 404, 407, 429, 500, 503 } do
      service(status, { ["remote-user"] = "ada" })
      local out = plugin:request {}
      spec.rejected(out, "auth.unavailable")
      spec.equal(out.status, 503)
      spec.set(out, "principal", nil)
    end
  end)

  it("lets everybody in then, without a name, when it is told to", function(plugin)
    local open = plugin:with { url = url, on_unavailable = "allow", upstream_headers = { "remote-user" } }
    service(500, { ["remote-user"] = "ada" })
    local out = open:request { headers = { ["remote-user"] = "forged" } }
    spec.passed(out)
    spec.set(out, "principal", nil)
    spec.upstream(out, "remote-user", nil)
    service(401)
    spec.rejected(open:request {}, "auth.refused")
  end)

  it("lets in nobody without a name, unless it is told to", function(plugin)
    service(200)
    spec.rejected(plugin:request {}, "auth.unavailable")
    service(200, { ["remote-user"] = "" })
    spec.rejected(plugin:request {}, "auth.unavailable")
    local out = plugin:with({ url = url, anonymous = true }):request {}
    spec.passed(out)
    spec.set(out, "principal", nil)
    out = plugin:request { principal = { id = "bob" } }
    spec.passed(out)
    spec.set(out, "principal", { id = "bob" })
  end)

  it("takes no principal that cannot be one", function(plugin)
    for _, id in ipairs { "-", ("x"):rep(257), ("x"):rep(5000), "\xff\xfe", "a\tb", "a\xc2\x85b" } do
      service(200, { ["remote-user"] = id })
      spec.rejected(plugin:request {}, "auth.unavailable")
    end
    service(200, { ["remote-user"] = ("é"):rep(128) })
    spec.passed(plugin:request {})
  end)

  it("does not believe what a browser says about itself", function(plugin)
    service(200)
    local out = plugin:with({ url = url, anonymous = true }):request { headers = { ["remote-user"] = "root" } }
    spec.set(out, "principal", nil)
    spec.equal(asked().headers["remote-user"], nil)
  end)

  it("knows the attributes of a principal", function(plugin)
    service(200, { ["x-user"] = "ada", ["x-tenant"] = "blue", ["x-functions"] = "f1, f2" })
    local settings = {
      url = url,
      principal_header = "X-User",
      attributes = { tenant = "X-Tenant", email = "x-email", functions = "x-functions" },
    }
    local out = plugin:with(settings):request {}
    spec.set(out, "principal", { id = "ada", tenant = "blue", functions = { "f1", "f2" } })
    service(200, { ["x-user"] = "ada" })
    out = plugin:with(settings):request {}
    spec.set(out, "principal", { id = "ada", functions = {} })
  end)

  it("sends headers of the answer upstream, in place of the browser's", function(plugin)
    local passing = plugin:with { url = url, upstream_headers = { "Remote-User", "remote-groups" } }
    service(200, { ["remote-user"] = "ada" })
    local out = passing:request {
      headers = { ["remote-user"] = "root", ["remote-groups"] = "wheel", ["x-mine"] = "1" },
    }
    spec.upstream(out, "remote-user", "ada")
    spec.upstream(out, "remote-groups", nil)
    spec.upstream(out, "x-mine", "1")
  end)

  it("asks once for the same question while the answer is fresh", function(plugin)
    local kept = plugin:with { url = url, cache = "10s", upstream_headers = { "x-groups" } }
    service(200, { ["remote-user"] = "ada", ["x-groups"] = "blue" })
    for _ = 1, 3 do
      local out = kept:request { at = 1000, headers = { authorization = "Bearer a" } }
      spec.set(out, "principal", { id = "ada" })
      spec.upstream(out, "x-groups", "blue")
    end
    spec.equal(select(2, asked()), 1)
    kept:request { headers = { authorization = "Bearer b" } }
    kept:request { headers = { authorization = "Bearer a" }, path = "/other" }
    kept:request { headers = { authorization = "Bearer a" }, method = "POST" }
    kept:request { headers = { authorization = "Bearer a" }, client_ip = "192.0.2.9" }
    spec.equal(select(2, asked()), 5)
    kept:request { headers = { authorization = "Bearer a" }, at = 1011 }
    spec.equal(select(2, asked()), 6)
  end)

  it("keeps a refusal too, and never a failure", function(plugin)
    local kept = plugin:with { url = url, cache = "10s" }
    service(401, { ["www-authenticate"] = "Basic" })
    for _ = 1, 2 do
      local out = kept:request { at = 1000 }
      spec.rejected(out, "auth.refused")
      spec.header(out, "www-authenticate", "Basic")
    end
    spec.equal(select(2, asked()), 1)
    service(500)
    spec.rejected(kept:request { path = "/other" }, "auth.unavailable")
    service(200, { ["remote-user"] = "ada" })
    spec.passed(kept:request { path = "/other" })
  end)

  it("tells questions apart that only look the same", function(plugin)
    local kept = plugin:with { url = url, cache = "10s", send_headers = { "x-a", "x-b" } }
    service(200, { ["remote-user"] = "ada" })
    kept:request { headers = { ["x-a"] = "1", ["x-b"] = "2" } }
    kept:request { headers = { ["x-a"] = "1x-b:2" } }
    kept:request { headers = { ["x-a"] = "2", ["x-b"] = "1" } }
    spec.equal(select(2, asked()), 3)
  end)

  it("asks each time without a cache", function(plugin)
    service(200, { ["remote-user"] = "ada" })
    plugin:request {}
    plugin:request {}
    spec.equal(select(2, asked()), 2)
  end)

  it("takes anything that a browser can send", function(plugin)
    service(200, { ["remote-user"] = "ada" })
    for _, value in ipairs { ("x"):rep(60000), "\xff\xfe\x80", "a\tb", "" } do
      spec.passed(plugin:request { headers = { cookie = value, authorization = value } })
    end
  end)

  it("refuses settings that make no sense", function()
    spec.refused({}, "url")
    spec.refused({ url = "auth.example" }, "url")
    spec.refused({ url = "ftp://auth.example/" }, "url")
    spec.refused({ url = url, send_headers = { "X-Forwarded-For" } }, "x-forwarded-for is not the browser's to say")
    spec.refused({ url = url, send_headers = { "host" } }, "host is not the browser's to say")
    spec.refused({ url = url, send_headers = { "no header" } }, "send_headers")
    spec.refused({ url = url, upstream_headers = { "Authorization" } }, "authorization is the gateway's to say")
    spec.refused({ url = url, upstream_headers = { "nvcf-reqid" } }, "nvcf-reqid is the gateway's to say")
    spec.refused({ url = url, upstream_headers = { "connection" } }, "connection is the gateway's to say")
    spec.refused({ url = url, attributes = { id = "x-id" } }, "the id comes from principal_header")
    spec.refused({ url = url, cache = "2h" }, "cache")
    spec.refused({ url = url, request_timeout = "0s" }, "request_timeout")
    spec.refused({ url = url, on_unavailable = "maybe" }, "on_unavailable")
    spec.refused({ url = url, request_timeout = "60s" }, "the step itself may wait for 60s only")
  end)
end)
