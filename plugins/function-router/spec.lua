--- spec.lua: what function-router promises.

local spec = require "streamgate.spec"

--- The settings with one rule: these conditions lead to `f1`.
local function rule(conditions)
  conditions["function"] = "f1"
  return { rules = { conditions } }
end

--- Fails unless exactly the requests of the first list are led to `f1`.
local function leads(plugin, fitting, others)
  for _, request in ipairs(fitting) do
    local out = plugin:request(request)
    spec.passed(out)
    spec.set(out, "function_id", "f1")
  end
  for _, request in ipairs(others) do
    local out = plugin:request(request)
    spec.passed(out)
    spec.set(out, "function_id", nil)
  end
end

local function paths(list)
  for idx, path in ipairs(list) do
    list[idx] = { path = path }
  end
  return list
end

local function offers(list)
  for idx, offer in ipairs(list) do
    list[idx] = { headers = { ["sec-websocket-protocol"] = offer } }
  end
  return list
end

return spec.plugin("function-router", rule { path = "/blue/**" }, function(it)
  it("chooses by the beginning of the path", function(plugin)
    leads(
      plugin,
      paths { "/blue", "/blue/", "/blue/sign_in", "/blue/a/b/c", "//blue//x", "/%62lue/x", "/blue/%", "/blue/%zz" },
      paths { "/", "/blues", "/Blue/x", "/a/blue/x", "/blue%2fx", "/blue%5cx", "/blu", "/%ff%fe", "/%00" }
    )
  end)

  it("chooses by the whole path", function(plugin)
    leads(
      plugin:with(rule { path = "/blue/sign_in" }),
      paths { "/blue/sign_in", "/blue/sign%5Fin" },
      paths { "/blue/sign_in/", "/blue", "/blue/", "/x/blue/sign_in", "/" }
    )
    leads(plugin:with(rule { path = "/" }), paths { "/", "//" }, paths { "/a" })
    leads(plugin:with(rule { path = "/**" }), paths { "/", "/a", "/a/b" }, {})
  end)

  it("chooses by a path with one open segment", function(plugin)
    leads(
      plugin:with(rule { path = "/*/sign_in" }),
      paths { "/a/sign_in", "/%20/sign_in" },
      paths { "/sign_in", "//sign_in", "/a/b/sign_in", "/a/sign_in/b" }
    )
  end)

  it("chooses by an entry that a script can offer", function(plugin)
    leads(
      plugin:with(rule { subprotocol = "app.blue" }),
      offers { "app.blue", "streamgate.v1, App.blue" },
      offers { "app.green", "app.Blue", "blue", "app", "app.blue.x", "xapp.blue", "app.green, app.blue" }
    )
    local any_app = plugin:with(rule { subprotocol = "app.*" })
    leads(any_app, offers { "app.x", "a, app.y.z" }, offers { "app", "application" })
    local chat = plugin:with(rule { subprotocol = "chat" })
    leads(chat, offers { "chat", "a, chat" }, offers { "Chat", "chat.1", "chats" })
    leads(chat, {}, { {} })
  end)

  it("chooses by a header", function(plugin)
    leads(plugin:with(rule { header = "x-app=blue" }), { { headers = { ["x-app"] = "blue" } } }, {
      {},
      { headers = { ["x-app"] = "Blue" } },
      { headers = { ["x-app"] = "blue, green" } },
      { headers = { ["x-app"] = "" } },
      { headers = { ["x-app"] = "\xff\xfe" } },
      { headers = { ["x-app"] = ("blue"):rep(10000) } },
      { headers = { ["x-other"] = "blue" } },
    })
    leads(plugin:with(rule { header = "X-App" }), { { headers = { ["x-app"] = "" } } }, { {} })
    leads(plugin:with(rule { header = "x-app=a=b" }), { { headers = { ["x-app"] = "a=b" } } }, {})
  end)

  it("chooses by a parameter of the query", function(plugin)
    leads(
      plugin:with(rule { query = "app=blue" }),
      { { query = "app=blue" }, { query = "a=b&app=bl%75e" }, { query = "app=blue&app=green" } },
      {
        {},
        { query = "" },
        { query = "app" },
        { query = "app=green&app=blue" },
        { query = "xapp=blue" },
        { query = "app=%ff" },
      }
    )
  end)

  it("chooses by who is asking", function(plugin)
    leads(
      plugin:with(rule { principal = "tenant=blue" }),
      { { principal = { id = "ada", tenant = "blue" } }, { principal = { id = "ada", tenant = { "red", "blue" } } } },
      {
        {},
        { principal = { id = "ada" } },
        { principal = { id = "blue", tenant = "red" } },
        { principal = { id = "ada", tenant = {} } },
        { principal = { id = "ada", tenant = { { "blue" } } } },
      }
    )
    local ada, bob = { principal = { id = "ada" } }, { principal = { id = "bob" } }
    leads(plugin:with(rule { principal = "id=ada" }), { ada }, { bob })
    leads(plugin:with(rule { principal = "level=7" }), { { principal = { id = "ada", level = 7 } } }, {})
    leads(plugin:with(rule { principal = "staff=true" }), { { principal = { id = "ada", staff = true } } }, {})
    leads(plugin:with(rule { principal = "staff" }), { { principal = { id = "ada", staff = "x" } } }, { {} })
  end)

  it("asks for all conditions of a rule", function(plugin)
    leads(
      plugin:with(rule { path = "/blue/**", query = "app=x" }),
      { { path = "/blue/", query = "app=x" } },
      { { path = "/blue/" }, { path = "/", query = "app=x" } }
    )
  end)

  it("takes the first rule that fits", function(plugin)
    local many = plugin:with {
      rules = {
        { path = "/a/b", ["function"] = "f1", version = "v1" },
        { path = "/a/**", ["function"] = "f2" },
        { ["function"] = "f3" },
      },
    }
    local out = many:request { path = "/a/b" }
    spec.set(out, "function_id", "f1")
    spec.set(out, "function_version_id", "v1")
    out = many:request { path = "/a/c" }
    spec.set(out, "function_id", "f2")
    spec.set(out, "function_version_id", nil)
    spec.set(many:request { path = "/" }, "function_id", "f3")
  end)

  it("refuses what no rule fits, when it is told to", function(plugin)
    local strict = plugin:with { rules = { { path = "/blue/**", ["function"] = "f1" } }, otherwise = "reject" }
    local out = strict:request { path = "/green" }
    spec.rejected(out, "function.unrouted")
    spec.equal(out.status, 404)
    spec.passed(strict:request { path = "/blue" })
  end)

  it("leads no principal to a function that is not its own", function(plugin)
    local request = { path = "/blue", principal = { id = "ada", functions = { "f2" } } }
    spec.rejected(plugin:request(request), "function.forbidden")
    request.principal.functions = { "f2", "f1" }
    spec.set(plugin:request(request), "function_id", "f1")
    request.principal.functions = {}
    spec.rejected(plugin:request(request), "function.forbidden")
  end)

  it("leaves what another plugin has chosen", function(plugin)
    local out = plugin:request { path = "/blue", set = { function_id = "f9" } }
    spec.passed(out)
    spec.set(out, "function_id", "f9")
  end)

  it("wants rules that it can follow", function()
    spec.refused({}, "rules")
    spec.refused({ rules = {} }, "at least one")
    spec.refused({ rules = { { path = "/a" } } }, "rule 1: function: expected an id")
    spec.refused({ rules = { { path = "/a", ["function"] = "" } } }, "expected an id")
    spec.refused({ rules = { { path = "/a", ["function"] = "a b" } } }, "expected an id")
    spec.refused({ rules = { { path = "/a", ["function"] = ("f"):rep(129) } } }, "expected an id")
    spec.refused({ rules = { { path = "/a", ["function"] = "f", version = "" } } }, "version: expected an id")
    spec.refused({ rules = { { pth = "/a", ["function"] = "f" } } }, "unknown key `pth`")
    spec.refused(rule { path = "a" }, "starts with `/`")
    spec.refused(rule { path = "/a*" }, "a whole segment")
    spec.refused(rule { path = "/**/a" }, "nothing can follow")
    spec.refused(rule { subprotocol = "a b" }, "an entry of Sec-WebSocket-Protocol")
    spec.refused(rule { header = "=blue" }, "`name` or `name=value`")
    spec.refused(rule { query = "" }, "`name` or `name=value`")
    spec.refused(
      { rules = { { ["function"] = "f1" }, { path = "/a", ["function"] = "f2" } } },
      "rule 2 is never asked"
    )
    spec.refused({ rules = { { path = "/a", ["function"] = "f" } }, otherwise = "panic" }, "otherwise")
  end)
end)
