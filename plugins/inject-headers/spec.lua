--- spec.lua: what inject-headers promises.

local spec = require "streamgate.spec"

local settings = {
  set = { ["x-tenant"] = "{principal.tenant}", ["x-via"] = "gateway {request.id}", ["x-client"] = "{client.ip}" },
  remove = { "referer" },
}

return spec.plugin("inject-headers", settings, function(it)
  it("fills in what is known about the request", function(plugin)
    local out = plugin:request { principal = { id = "ada", tenant = "acme" }, client_ip = "192.0.2.7", id = "r1" }
    spec.upstream(out, "x-tenant", "acme")
    spec.upstream(out, "x-via", "gateway r1")
    spec.upstream(out, "x-client", "192.0.2.7")
  end)

  it("lets no browser say what the gateway could not", function(plugin)
    local out = plugin:request { headers = { ["x-tenant"] = "forged" } }
    spec.upstream(out, "x-tenant", nil)
    out = plugin:request { headers = { ["x-tenant"] = "forged" }, principal = { id = "ada", tenant = "acme" } }
    spec.upstream(out, "x-tenant", "acme")
  end)

  it("leaves no header that a server could read as one of them", function(plugin)
    local browser = { x_tenant = "forged", ["x-tenant_id"] = "7", ["X_Via"] = "forged" }
    local out = plugin:request { headers = browser, principal = { id = "ada", tenant = "acme" } }
    spec.upstream(out, "x-tenant", "acme")
    spec.upstream(out, "x_tenant", nil)
    spec.upstream(out, "x_via", nil)
    spec.upstream(out, "x-tenant_id", "7")
    out = plugin:request { headers = browser }
    spec.upstream(out, "x_tenant", nil)
  end)

  it("takes headers out", function(plugin)
    local out = plugin:request { headers = { referer = "https://app.example/secret", accept = "*/*" } }
    spec.upstream(out, "referer", nil)
    spec.upstream(out, "accept", "*/*")
  end)

  it("refuses a placeholder that it does not know", function()
    spec.refused({ set = { ["x-a"] = "{request.secret}" } }, "unknown placeholder {request.secret}")
  end)

  it("fills in as many placeholders as there are, and leaves other braces", function(plugin)
    local set = { ["x-a"] = "a{request.method}b{request.path}{client.ip}c", ["x-b"] = "}{ is no placeholder {" }
    local out = plugin:with({ set = set }):request { method = "POST", path = "/x", client_ip = "192.0.2.7" }
    spec.upstream(out, "x-a", "aPOSTb/x192.0.2.7c")
    spec.upstream(out, "x-b", "}{ is no placeholder {")
  end)

  it("cannot say what the gateway says to NVCF", function(plugin)
    for _, name in ipairs { "authorization", "function-id", "nvcf-reqid", "X-NVCF-ABSORB", "host", "cookie" } do
      local out = plugin:with({ set = { [name] = "x" }, remove = {} }):request {}
      spec.rejected(out, "plugin.failed")
      spec.failed(out, "is the gateway's to say")
    end
  end)

  it("cannot be made to split a header", function(plugin)
    local out = plugin:request { principal = { id = "ada", tenant = "acme\r\nx-admin: yes" } }
    spec.rejected(out, "plugin.failed")
    spec.upstream(out, "x-admin", nil)
  end)
end)
