--- spec.lua: what request-id promises.

local spec = require "streamgate.spec"

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-(%x)%x%x%x%-[89ab]%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"

return spec.plugin("request-id", {}, function(it)
  it("names a request as the gateway's log does", function(plugin)
    local out = plugin:request { id = "r1" }
    spec.passed(out)
    spec.set(out, "request-id", "r1")
    spec.upstream(out, "x-request-id", "r1")
  end)

  it("tells the browser", function(plugin)
    local out = plugin:response { status = 200, request = { id = "r1", set = { ["request-id"] = "r2" } } }
    spec.header(out, "x-request-id", "r2")
    out = plugin:response { status = 400, request = { id = "r1" } } -- broken before it was asked about
    spec.header(out, "x-request-id", "r1")
  end)

  it("takes no id from a browser", function(plugin)
    local out = plugin:request { id = "r1", headers = { ["x-request-id"] = "forged" } }
    spec.set(out, "request-id", "r1")
    spec.upstream(out, "x-request-id", "r1")
  end)

  it("replaces what the upstream says", function(plugin)
    local out = plugin:response {
      status = 200,
      headers = { ["x-request-id"] = "of-the-upstream" },
      request = { id = "r1", set = { ["request-id"] = "r1" } },
    }
    spec.header(out, "x-request-id", "r1")
  end)

  it("takes an incoming id when it is told to", function(plugin)
    local trusting = plugin:with { accept = true }
    for _, id in ipairs { "a", "0b7e0c5e-58f0-4d34-a9a5-0f3d0c9be6a1", "01JD_x.y", ("i"):rep(64) } do
      local out = trusting:request { id = "r1", headers = { ["x-request-id"] = id } }
      spec.set(out, "request-id", id)
      spec.upstream(out, "x-request-id", id)
    end
    spec.upstream(trusting:request { id = "r1" }, "x-request-id", "r1")
  end)

  it("replaces an incoming id that is not safe", function(plugin)
    local trusting = plugin:with { accept = true }
    for _, id in ipairs {
      "",
      " ",
      "a b",
      "a\tb",
      "a,b",
      'a"b',
      "a/../b",
      "<script>",
      "${jndi:x}",
      "a%0d%0ab",
      "\xff\xfe",
      "é",
      ("i"):rep(65),
      ("i"):rep(60000),
    } do
      local out = trusting:request { id = "r1", headers = { ["x-request-id"] = id } }
      spec.passed(out)
      spec.set(out, "request-id", "r1")
      spec.upstream(out, "x-request-id", "r1")
    end
  end)

  it("bounds an incoming id as it is told to", function(plugin)
    local short = plugin:with { accept = true, longest = 3 }
    spec.set(short:request { headers = { ["x-request-id"] = "abc" } }, "request-id", "abc")
    spec.set(short:request { id = "r1", headers = { ["x-request-id"] = "abcd" } }, "request-id", "r1")
  end)

  it("writes down under which name an id came", function(plugin)
    local out = plugin:with({ accept = true }):request { id = "r1", headers = { ["x-request-id"] = "abc" } }
    spec.equal(out.logged, { { level = "debug", message = "r1 came with the id abc" } })
  end)

  it("makes a UUID when it is told to", function(plugin)
    for make, version in pairs { ["uuid-v4"] = "4", ["uuid-v7"] = "7" } do
      local making = plugin:with { make = make }
      local out = making:request { id = "r1" }
      spec.equal(out.set["request-id"]:match(UUID), version)
      spec.upstream(out, "x-request-id", out.set["request-id"])
      spec.equal(making:request({ id = "r1" }).set["request-id"] ~= out.set["request-id"], true)
    end
  end)

  it("uses the header that it is told to", function(plugin)
    local other = plugin:with { header = "x-correlation-id", accept = true }
    local headers = { ["x-correlation-id"] = "abc", ["x-request-id"] = "def" }
    local out = other:request { headers = headers }
    spec.upstream(out, "x-correlation-id", "abc")
    spec.upstream(out, "x-request-id", "def") -- an ordinary header then
    out = other:response { status = 200, request = { id = "r1" } }
    spec.header(out, "x-correlation-id", "r1")
    spec.header(out, "x-request-id", nil)
  end)

  it("keeps the id to itself when it is told to", function(plugin)
    local out = plugin:with({ upstream = false }):request { headers = { ["x-request-id"] = "forged" } }
    spec.upstream(out, "x-request-id", nil)
    out = plugin:with({ response = false }):response { status = 200, request = { id = "r1" } }
    spec.header(out, "x-request-id", nil)
  end)

  it("wants a header that is free", function()
    for _, name in ipairs { "nvcf-reqid", "function-id", "authorization", "cookie", "host", "content-length" } do
      spec.refused({ header = name }, "has another meaning")
    end
    spec.refused({ header = "a b" }, "header")
    spec.refused({ longest = 0 }, "longest")
    spec.refused({ longest = 257 }, "longest")
    spec.refused({ make = "counter" }, "make")
  end)
end)
