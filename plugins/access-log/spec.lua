--- spec.lua: what access-log promises.

local json = require "streamgate.json"
local spec = require "streamgate.spec"

--- The one line that was logged; fails when there is not exactly one.
local function line(out)
  spec.equal(#out.logged, 1, "lines")
  spec.equal(out.logged[1].level, "info")
  return out.logged[1].message
end

local request = {
  id = "r1",
  method = "GET",
  path = "/sign_in",
  query = "token=s3cret",
  client_ip = "192.0.2.7",
  headers = { authorization = "Bearer s3cret", cookie = "token=s3cret", ["user-agent"] = "spec" },
  principal = { id = "ada", tenant = "blue", groups = { "a", "b" } },
}

--- The line of a request whose one field has this value.
local function line_with(plugin, field, changes)
  local changed = {}
  for key, value in pairs(request) do
    changed[key] = value
  end
  for key, value in pairs(changes or {}) do
    changed[key] = value
  end
  return line(plugin:with({ fields = { field } }):log { request = changed, status = 200 })
end

local settings = { fields = { "request", "method", "path", "principal", "status", "code" } }

return spec.plugin("access-log", settings, function(it)
  it("writes a line for a request", function(plugin)
    local out = plugin:log { request = request, status = 200 }
    spec.equal(line(out), "kind=request request=r1 method=GET path=/sign_in principal=ada status=200")
  end)

  it("writes the code of a request that was not served", function(plugin)
    local out = plugin:log { request = { id = "r1" }, status = 401, code = "auth.missing_token" }
    spec.equal(line(out), "kind=request request=r1 method=GET path=/ status=401 code=auth.missing_token")
  end)

  it("writes a line for a session", function(plugin)
    local fields = { "request", "principal", "session", "function", "cause", "age", "received", "sent", "status" }
    local out = plugin:with({ fields = fields }):session("session_end", {
      id = "r1",
      principal = { id = "ada" },
      session = { id = "s1", function_id = "f1", age = 12.5, cause = "browser closed", received = 10, sent = 2000 },
    })
    local begins = "kind=session request=r1 principal=ada session=s1 function=f1 "
    spec.equal(line(out), begins .. 'cause="browser closed" age=12.5 received=10 sent=2000')
  end)

  it("writes JSON when it is told to", function(plugin)
    local fields = { "request", "path", "status", "tls", "principal.groups", "code" }
    local out = plugin:with({ fields = fields, format = "json" }):log { request = request, status = 200 }
    spec.equal(json.decode(line(out)), {
      kind = "request",
      request = "r1",
      path = "/sign_in",
      status = 200,
      tls = false,
      ["principal.groups"] = { "a", "b" },
    })
  end)

  it("keeps tokens and queries out of a line by default", function(plugin)
    local default = plugin:with {}
    local out = default:log { request = request, status = 200 }
    spec.equal(line(out):find("s3cret", 1, true), nil)
    out = plugin:with({ format = "json" }):log { request = request, status = 200 }
    spec.equal(line(out):find("s3cret", 1, true), nil)
  end)

  it("writes queries, parameters and headers only when they are chosen", function(plugin)
    spec.equal(line_with(plugin, "query"), 'kind=request query="token=s3cret"')
    spec.equal(line_with(plugin, "parameter.token"), "kind=request parameter.token=s3cret")
    spec.equal(line_with(plugin, "header.user-agent"), "kind=request header.user-agent=spec")
    spec.equal(line_with(plugin, "header.x-absent"), "kind=request")
    local typed = plugin:with { fields = { "response.content-type" } }
    local out = typed:log { request = request, status = 200, headers = { ["content-type"] = "text/html" } }
    spec.equal(line(out), "kind=request response.content-type=text/html")
  end)

  it("writes what is known about who asked, and what plugins said", function(plugin)
    spec.equal(line_with(plugin, "principal.tenant"), "kind=request principal.tenant=blue")
    spec.equal(line_with(plugin, "principal.groups"), 'kind=request principal.groups="a,b"')
    spec.equal(line_with(plugin, "principal.absent"), "kind=request")
    local set = { ["request-id"] = "abc" }
    spec.equal(line_with(plugin, "set.request-id", { set = set }), "kind=request set.request-id=abc")
    spec.equal(line_with(plugin, "set.x", { set = { x = { y = 1 } } }), "kind=request")
    spec.equal(line_with(plugin, "client_ip"), "kind=request client_ip=192.0.2.7")
    spec.equal(line_with(plugin, "time"), "kind=request time=1970-01-01T00:00:00Z")
  end)

  it("measures how long a request took", function(plugin)
    local set = plugin:request({ id = "r1" }).set
    local message = line_with(plugin, "took", { set = { ["access-log.began"] = set["access-log.began"] } })
    spec.equal(message:match "^kind=request took=[%d.e-]+$" ~= nil, true, message)
    spec.equal(line_with(plugin, "took"), "kind=request") -- too broken to be asked about
  end)

  it("lets nobody forge a line or a field", function(plugin)
    for value, written in pairs {
      ["a b"] = '"a b"',
      ['say "hi"'] = '"say \\"hi\\""',
      ["x status=500"] = '"x status=500"',
      ["back\\slash"] = "back\\\\slash",
      ["tab\there"] = "tab\\x09here",
      ["\xff\xfe"] = "\\xff\\xfe",
      ["mixed \xff"] = '"mixed \\xff"',
      [""] = '""',
      ["Zoë"] = "Zoë",
    } do
      local message = line_with(plugin, "header.x", { headers = { x = value } })
      spec.equal(message, "kind=request header.x=" .. written)
    end
    local principal = { id = "ada", note = "a\nkind=request status=200" }
    local message = line_with(plugin, "principal.note", { principal = principal })
    spec.equal(message, 'kind=request principal.note="a\\x0akind=request status=200"')
  end)

  it("writes JSON of whatever a browser sent", function(plugin)
    for _, value in ipairs { "\xff\xfe", 'say "hi"', "back\\slash", "tab\there", ("x"):rep(60000), "\u{1F511}" } do
      local out = plugin
        :with({ fields = { "header.x" }, format = "json" })
        :log { request = { headers = { x = value } }, status = 200 }
      local decoded = json.decode(line(out))
      spec.equal(type(decoded["header.x"]), "string")
    end
  end)

  it("cuts what is too long, and not in the middle of a character", function(plugin)
    local message = line_with(plugin, "header.x", { headers = { x = ("x"):rep(60000) } })
    spec.equal(message, "kind=request header.x=" .. ("x"):rep(512) .. "…")
    message = line_with(plugin, "header.x", { headers = { x = "x" .. ("ë"):rep(1000) } })
    spec.equal(message, "kind=request header.x=x" .. ("ë"):rep(255) .. "…")
    local groups = {}
    for idx = 1, 1000 do
      groups[idx] = "g"
    end
    message = line_with(plugin, "principal.groups", { principal = { id = "ada", groups = groups } })
    spec.equal(#message < 128, true)
  end)

  it("writes a part of the lines, and those of failures", function(plugin)
    local none = plugin:with { sample = 0 }
    spec.equal(#none:log({ request = request, status = 200 }).logged, 0)
    spec.equal(#none:log({ request = request, status = 404 }).logged, 1)
    spec.equal(#none:log({ request = request, status = 101, code = "upstream.closed" }).logged, 1)
    spec.equal(#none:session("session_end", { id = "r1", session = { id = "s1" } }).logged, 0)
    local silent = plugin:with { sample = 0, failures = false }
    spec.equal(#silent:log({ request = request, status = 500 }).logged, 0)
  end)

  it("decides by the id, for a request as for its session", function(plugin)
    local half = plugin:with { sample = 0.5 }
    local n_lines = 0
    for idx = 1, 200 do
      local id = "r" .. idx
      local n_request = #half:log({ request = { id = id }, status = 200 }).logged
      local n_session = #half:session("session_end", { id = id, session = { id = "s1" } }).logged
      spec.equal(n_request, n_session)
      n_lines = n_lines + n_request
    end
    spec.equal(n_lines > 60 and n_lines < 140, true, tostring(n_lines))
  end)

  it("writes lines of one kind when it is told to", function(plugin)
    local session = { id = "r1", session = { id = "s1" } }
    local requests = plugin:with { lines = "requests" }
    spec.equal(#requests:log({ request = request, status = 200 }).logged, 1)
    spec.equal(#requests:session("session_end", session).logged, 0)
    local sessions = plugin:with { lines = "sessions" }
    spec.equal(#sessions:log({ request = request, status = 500 }).logged, 0)
    spec.equal(#sessions:session("session_end", session).logged, 1)
  end)

  it("wants fields that there are, and none with credentials", function()
    spec.refused({ fields = {} }, "at least one")
    spec.refused({ fields = { "pth" } }, "there is no `pth`")
    spec.refused({ fields = { "body.x" } }, "there is no `body.x`")
    spec.refused({ fields = { "header." } }, "there is no `header.`")
    spec.refused({ fields = { "path", "path" } }, "is there twice")
    for _, name in ipairs {
      "header.authorization",
      "header.Authorization",
      "header.cookie",
      "header.proxy-authorization",
      "header.sec-websocket-protocol",
      "response.set-cookie",
    } do
      spec.refused({ fields = { name } }, "carries credentials")
    end
    spec.refused({ sample = 1.5 }, "sample")
    spec.refused({ sample = -1 }, "sample")
    spec.refused({ format = "xml" }, "format")
    spec.refused({ lines = "none" }, "lines")
  end)
end)
