--- spec.lua: what ip-restriction promises.

local spec = require "streamgate.spec"

--- Fails unless exactly the addresses of the first list may come in.
local function admits(plugin, welcome, others)
  for _, address in ipairs(welcome) do
    spec.passed(plugin:request { client_ip = address })
  end
  for _, address in ipairs(others) do
    local out = plugin:request { client_ip = address }
    spec.rejected(out, "ip.refused")
    spec.equal(out.status, 403)
  end
end

--- A request that a proxy passes on.
local function forwarded(chain, name)
  return { client_ip = "10.0.0.1", headers = { [name or "x-forwarded-for"] = chain } }
end

return spec.plugin("ip-restriction", { allow = { "192.0.2.0/24", "2001:db8::/32" } }, function(it)
  it("admits whom it is told to, and nobody else", function(plugin)
    admits(
      plugin,
      { "192.0.2.0", "192.0.2.255", "2001:db8::1", "2001:db8:ffff::", "::ffff:192.0.2.7" },
      { "192.0.1.255", "192.0.3.0", "127.0.0.1", "2001:db7::1", "::1", "::ffff:192.0.3.1" }
    )
  end)

  it("refuses whom it is told to, and nobody else", function(plugin)
    admits(
      plugin:with { deny = { "192.0.2.7", "2001:db8::/32" } },
      { "192.0.2.6", "192.0.2.8", "127.0.0.1", "2001:db7::1" },
      { "192.0.2.7", "::ffff:192.0.2.7", "2001:db8::7" }
    )
  end)

  it("refuses whom both lists name", function(plugin)
    admits(
      plugin:with { allow = { "192.0.2.0/24" }, deny = { "192.0.2.128/25" } },
      { "192.0.2.1", "192.0.2.127" },
      { "192.0.2.128", "192.0.2.255", "198.51.100.1" }
    )
  end)

  it("believes no header of whoever is no proxy", function(plugin)
    local out = plugin:request {
      client_ip = "198.51.100.1",
      headers = { ["x-forwarded-for"] = "192.0.2.1", ["x-real-ip"] = "192.0.2.1", forwarded = "for=192.0.2.1" },
    }
    spec.rejected(out, "ip.refused")
    local behind = plugin:with { allow = { "192.0.2.0/24" }, proxies = { "10.0.0.0/8" } }
    out = behind:request { client_ip = "198.51.100.1", headers = { ["x-forwarded-for"] = "192.0.2.1" } }
    spec.rejected(out, "ip.refused")
  end)

  it("believes a proxy about whom it was talking to, and nothing left of that", function(plugin)
    local behind = plugin:with { allow = { "192.0.2.0/24", "2001:db8::/32" }, proxies = { "10.0.0.0/8" } }
    for chain, is_welcome in pairs {
      ["192.0.2.1"] = true,
      ["198.51.100.1, 192.0.2.1"] = true,
      ["192.0.2.1, 10.0.0.2"] = true,
      ["192.0.2.1,10.0.0.2 ,\t10.0.0.3"] = true,
      ["garbage, 192.0.2.1"] = true,
      ["192.0.2.1:4711"] = true,
      ["2001:db8::1"] = true,
      ["[2001:db8::1]:4711"] = true,
      ["[2001:db8::1]"] = true,
      ["192.0.2.1, 198.51.100.1"] = false, -- the first was made up
      ["192.0.2.1, 198.51.100.1, 10.0.0.2"] = false,
      ["192.0.2.1, garbage"] = false,
      ["192.0.2.1, garbage, 10.0.0.2"] = false,
      ["192.0.2.1, unknown"] = false,
      ["192.0.2.0/24"] = false,
      ["192.0.2.1 10.0.0.2"] = false,
      ["192.0.2.1;"] = false,
      ["[192.0.2.1"] = false,
      ["192.0.2.256"] = false,
      ["10.0.0.2, 10.0.0.3"] = false, -- nobody but proxies: the furthest of them counts
      ["\xff\xfe"] = false,
      [""] = false, -- the proxy itself counts
      [","] = false,
    } do
      local out = behind:request(forwarded(chain))
      spec.equal(out.code, not is_welcome and "ip.refused" or nil, chain)
    end
  end)

  it("judges a proxy like anybody when it says nothing", function(plugin)
    local behind = plugin:with { allow = { "10.0.0.0/8" }, proxies = { "10.0.0.0/8" } }
    spec.passed(behind:request { client_ip = "10.0.0.1" })
    spec.passed(behind:request(forwarded "10.0.0.2"))
    spec.rejected(behind:request(forwarded "192.0.2.1"), "ip.refused")
  end)

  it("refuses a way that is too long to be honest", function(plugin)
    local behind = plugin:with { deny = { "198.51.100.1" }, proxies = { "10.0.0.0/8" } }
    spec.passed(behind:request(forwarded("192.0.2.1" .. (", 10.0.0.2"):rep(31))))
    spec.rejected(behind:request(forwarded("192.0.2.1" .. (", 10.0.0.2"):rep(32))), "ip.refused")
    spec.rejected(behind:request(forwarded("192.0.2.1" .. (", 10.0.0.2"):rep(5000))), "ip.refused")
    spec.passed(behind:request(forwarded(("198.51.100.1, "):rep(4000) .. "192.0.2.1")))
    spec.rejected(behind:request(forwarded(("1"):rep(60000))), "ip.refused")
  end)

  it("reads all lines of the header, so that nobody hides a proxy's word behind their own", function(plugin)
    -- Two spellings of the name are two lines, in an order that a table does not keep: both come from outside.
    local behind = plugin:with { allow = { "192.0.2.0/24" }, proxies = { "10.0.0.0/8" } }
    local headers = { ["x-forwarded-for"] = "198.51.100.1", ["X-Forwarded-For"] = "198.51.100.2" }
    spec.rejected(behind:request { client_ip = "10.0.0.1", headers = headers }, "ip.refused")
    headers = { ["x-forwarded-for"] = "192.0.2.1", ["X-Forwarded-For"] = "10.0.0.9" }
    spec.passed(behind:request { client_ip = "10.0.0.1", headers = headers })
    headers = { ["x-forwarded-for"] = "10.0.0.9", ["X-Forwarded-For"] = "192.0.2.1" }
    spec.passed(behind:request { client_ip = "10.0.0.1", headers = headers })
  end)

  it("reads the header that it is told to", function(plugin)
    local behind = plugin:with { allow = { "192.0.2.0/24" }, proxies = { "10.0.0.1" }, header = "x-real-ip" }
    spec.passed(behind:request(forwarded("192.0.2.1", "x-real-ip")))
    spec.rejected(behind:request(forwarded "192.0.2.1"), "ip.refused")
  end)

  it("wants lists that mean something", function()
    spec.refused({}, "give `allow`, `deny` or both")
    spec.refused({ allow = {} }, "would refuse everybody")
    spec.refused({ allow = { "192.0.2.0/33" } }, "allow")
    spec.refused({ deny = { "example.com" } }, "deny")
    spec.refused({ deny = { "192.0.2.1" }, proxies = { "everybody" } }, "proxies")
    spec.refused({ deny = { "192.0.2.1" }, header = "a b" }, "header")
  end)
end)
