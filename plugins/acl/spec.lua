--- spec.lua: what acl promises.

local spec = require "streamgate.spec"

local settings = {
  principals = { ada = { "f1", "f2" }, root = { "*" } },
  groups = { designers = { "f3" }, ["7"] = { "f7" }, admins = { "*" } },
}

return spec.plugin("acl", settings, function(it)
  it("bounds a principal to the functions that it is granted", function(plugin)
    local out = plugin:request { principal = { id = "ada", tenant = "blue" } }
    spec.passed(out)
    spec.set(out, "principal", { id = "ada", tenant = "blue", functions = { "f1", "f2" } })
  end)

  it("grants by an attribute, be it one value or a list", function(plugin)
    local out = plugin:request { principal = { id = "bob", groups = "designers" } }
    spec.equal(out.set.principal.functions, { "f3" })
    out = plugin:request { principal = { id = "bob", groups = { "others", "designers" } } }
    spec.equal(out.set.principal.functions, { "f3" })
    out = plugin:request { principal = { id = "bob", groups = 7 } }
    spec.equal(out.set.principal.functions, { "f7" })
  end)

  it("adds up what the lists grant", function(plugin)
    local out = plugin:request { principal = { id = "ada", groups = { "designers" } } }
    spec.equal(out.set.principal.functions, { "f1", "f2", "f3" })
    local more = plugin:with { principals = { ada = { "f1" } }, everybody = { "f0", "f1" } }
    spec.equal(more:request({ principal = { id = "ada" } }).set.principal.functions, { "f0", "f1" })
    spec.equal(more:request({ principal = { id = "zoe" } }).set.principal.functions, { "f0", "f1" })
  end)

  it("reads the attribute that it is told to", function(plugin)
    local by_tenant = plugin:with { attribute = "tenant", groups = { blue = { "f1" } } }
    spec.equal(by_tenant:request({ principal = { id = "ada", tenant = "blue" } }).set.principal.functions, { "f1" })
    spec.rejected(by_tenant:request { principal = { id = "ada", groups = "blue" } }, "auth.forbidden")
  end)

  it("refuses whom no list grants anything", function(plugin)
    for _, principal in ipairs {
      { id = "mallory" },
      { id = "ADA" },
      { id = "mallory", groups = "f3" },
      { id = "mallory", groups = "designers " },
      { id = "mallory", groups = "designers,admins" },
      { id = "mallory", groups = { "x", "y" } },
      { id = "mallory", groups = {} },
      { id = "mallory", groups = { admins = true } },
      { id = "mallory", groups = { { "admins" } } },
      { id = "mallory", groups = true },
      { id = "mallory", groups = 7.5 },
      { id = "mallory", groups = ("designers"):rep(5000) },
      { id = "designers" },
      { id = "*" },
    } do
      local out = plugin:request { principal = principal }
      spec.rejected(out, "auth.forbidden")
      spec.equal(out.status, 403)
    end
  end)

  it("refuses a request that nobody authenticated", function(plugin)
    spec.rejected(plugin:request {}, "auth.forbidden")
    spec.rejected(plugin:with({ everybody = { "*" } }):request {}, "auth.forbidden")
  end)

  it("leaves a principal that may use everything as it is", function(plugin)
    local out = plugin:request { principal = { id = "root" } }
    spec.passed(out)
    spec.set(out, "principal", { id = "root" })
    out = plugin:request { principal = { id = "bob", groups = { "admins" } } }
    spec.set(out, "principal", { id = "bob", groups = { "admins" } })
  end)

  it("never grants more than the principal's own functions", function(plugin)
    local out = plugin:request { principal = { id = "ada", functions = { "f2", "f9" } } }
    spec.equal(out.set.principal.functions, { "f2" })
    out = plugin:request { principal = { id = "root", functions = { "f9" } } }
    spec.equal(out.set.principal.functions, { "f9" })
    out = plugin:request { principal = { id = "ada", functions = { "f9" } } }
    spec.rejected(out, "function.forbidden")
    out = plugin:request { principal = { id = "ada", functions = {} } }
    spec.rejected(out, "function.forbidden")
  end)

  it("refuses a function that a plugin chose and no list grants", function(plugin)
    spec.passed(plugin:request { principal = { id = "ada" }, set = { function_id = "f1" } })
    spec.passed(plugin:request { principal = { id = "root" }, set = { function_id = "f9" } })
    for _, id in ipairs { "f3", "f", "f11", "*", "F1" } do
      local out = plugin:request { principal = { id = "ada" }, set = { function_id = id } }
      spec.rejected(out, "function.forbidden")
      spec.equal(out.status, 403)
    end
    local own = { id = "root", functions = { "f1" } }
    spec.rejected(plugin:request { principal = own, set = { function_id = "f9" } }, "function.forbidden")
  end)

  it("judges what a router chooses", function()
    local acl = { plugin = "acl", principals = { ada = { "f1" } } }
    local rules = { { path = "/f1", ["function"] = "f1" }, { ["function"] = "f2" } }
    local router = { plugin = "function-router", rules = rules }
    local chain = spec.chain { router, acl }
    local out = chain:request { path = "/f1", principal = { id = "ada" } }
    spec.passed(out)
    spec.set(out, "function_id", "f1")
    spec.rejected(chain:request { path = "/f2", principal = { id = "ada" } }, "function.forbidden")
  end)

  it("ends a session whose function is not granted any more", function(plugin)
    local session = { principal = { id = "ada", functions = { "f1", "f2" } }, session = { function_id = "f1" } }
    spec.passed(plugin:session("session_tick", session))
    local narrower = plugin:with { principals = { ada = { "f2" } } }
    spec.rejected(narrower:session("session_tick", session), "function.forbidden")
    local nobody = plugin:with { principals = { bob = { "f1" } } }
    spec.rejected(nobody:session("session_tick", session), "function.forbidden")
    spec.rejected(plugin:session("session_tick", { session = { function_id = "f1" } }), "function.forbidden")
    local all = { principal = { id = "root" }, session = { function_id = "f9" } }
    spec.passed(plugin:session("session_tick", all))
  end)

  it("wants to grant something to somebody", function()
    spec.refused({}, "nobody may use anything")
    spec.refused({ principals = { ada = "f1" } }, "principals")
    spec.refused({ groups = { designers = "f1" } }, "groups")
  end)
end)
