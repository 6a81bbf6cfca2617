--- spec.lua: what rate-limit promises.

local spec = require "streamgate.spec"

local function from(address)
  return { client_ip = address }
end

local function by(plugin, settings)
  settings.rate = settings.rate or 1
  return plugin:with(settings)
end

local function response(out)
  return { status = 200, request = { set = out.set } }
end

return spec.plugin("rate-limit", { rate = 2, per = "10s" }, function(it)
  it("lets requests pass up to the limit, and refuses the next", function(plugin)
    spec.passed(plugin:request { at = 1000 })
    spec.passed(plugin:request {})
    local out = plugin:request {}
    spec.rejected(out, "rate.exceeded")
    spec.header(out, "retry-after", "5")
    spec.header(out, "ratelimit-policy", '"default";q=2;w=10')
    spec.header(out, "ratelimit", '"default";r=0;t=10')
  end)

  it("lets requests pass again when time has gone by", function(plugin)
    spec.passed(plugin:request { at = 1000 })
    spec.passed(plugin:request {})
    spec.rejected(plugin:request { at = 1004 }, "rate.exceeded")
    spec.passed(plugin:request { at = 1005.1 })
    spec.rejected(plugin:request {}, "rate.exceeded")
    spec.passed(plugin:request { at = 1100 })
    spec.passed(plugin:request {})
    spec.rejected(plugin:request {}, "rate.exceeded")
  end)

  it("counts each address for itself", function(plugin)
    for _ = 1, 2 do
      spec.passed(plugin:request(from "192.0.2.1"))
      spec.passed(plugin:request(from "192.0.2.2"))
    end
    spec.rejected(plugin:request(from "192.0.2.1"), "rate.exceeded")
    spec.rejected(plugin:request(from "192.0.2.2"), "rate.exceeded")
    spec.passed(plugin:request(from "192.0.2.3"))
  end)

  it("takes an IPv6 network for one address", function(plugin)
    spec.passed(plugin:request(from "2001:db8:1:2::1"))
    spec.passed(plugin:request(from "2001:db8:1:2:ffff:ffff:ffff:ffff"))
    spec.rejected(plugin:request(from "2001:db8:1:2:3::"), "rate.exceeded")
    spec.passed(plugin:request(from "2001:db8:1:3::1"))
    spec.passed(plugin:request(from "::1"))
    spec.passed(plugin:request(from "2001:db8::1:2:3:4")) -- the network of 2001:db8:0:0
  end)

  it("takes as many bits of an IPv6 address as it was told", function(plugin)
    local wide = by(plugin, { ipv6_prefix = 36 })
    spec.passed(wide:request(from "2001:db8:1000::1"))
    spec.rejected(wide:request(from "2001:db8:1fff:ffff::1"), "rate.exceeded")
    spec.passed(wide:request(from "2001:db8:2000::1"))
    local whole = by(plugin, { ipv6_prefix = 128 })
    spec.passed(whole:request(from "2001:db8:1000::1"))
    spec.passed(whole:request(from "2001:db8:1000::2"))
    spec.rejected(whole:request(from "2001:db8:1000::2"), "rate.exceeded")
  end)

  it("takes an address for the same in both of its forms", function(plugin)
    local one = by(plugin, {})
    spec.passed(one:request(from "192.0.2.1"))
    spec.rejected(one:request(from "::ffff:192.0.2.1"), "rate.exceeded")
  end)

  it("does not believe what a browser says about its address", function(plugin)
    local one = by(plugin, {})
    spec.passed(one:request { headers = { ["x-forwarded-for"] = "198.51.100.1" } })
    spec.rejected(one:request { headers = { ["x-forwarded-for"] = "198.51.100.2" } }, "rate.exceeded")
  end)

  it("counts by principal, wherever it comes from", function(plugin)
    local one = by(plugin, { by = "principal" })
    spec.passed(one:request { principal = { id = "ada" }, client_ip = "192.0.2.1" })
    spec.rejected(one:request { principal = { id = "ada" }, client_ip = "192.0.2.2" }, "rate.exceeded")
    spec.passed(one:request { principal = { id = "bob" }, client_ip = "192.0.2.1" })
    spec.passed(one:request { client_ip = "192.0.2.1" })
    spec.rejected(one:request { client_ip = "192.0.2.1" }, "rate.exceeded")
    spec.passed(one:request { principal = { id = "192.0.2.1" }, client_ip = "192.0.2.3" })
  end)

  it("counts by header, and by address without it", function(plugin)
    local one = by(plugin, { by = "header", header = "x-api-key" })
    spec.passed(one:request { headers = { ["x-api-key"] = "a" } })
    spec.rejected(one:request { headers = { ["x-api-key"] = "a" }, client_ip = "192.0.2.9" }, "rate.exceeded")
    spec.passed(one:request { headers = { ["x-api-key"] = "b" } })
    spec.passed(one:request {})
    spec.rejected(one:request {}, "rate.exceeded")
  end)

  it("takes headers of any length and any bytes", function(plugin)
    local one = by(plugin, { by = "header", header = "x-api-key" })
    for _, value in ipairs { ("x"):rep(60000), "\xff\xfe\x80", "", " ", "a\tb" } do
      spec.passed(one:request { headers = { ["x-api-key"] = value } })
      spec.rejected(one:request { headers = { ["x-api-key"] = value } }, "rate.exceeded")
    end
  end)

  it("counts a route as a whole", function(plugin)
    local one = by(plugin, { by = "route" })
    spec.passed(one:request { principal = { id = "ada" }, client_ip = "192.0.2.1" })
    spec.rejected(one:request { principal = { id = "bob" }, client_ip = "192.0.2.2" }, "rate.exceeded")
  end)

  it("lets more come at once when it may burst", function(plugin)
    local burst = by(plugin, { rate = 1, per = "10s", burst = 3 })
    for _ = 1, 3 do
      spec.passed(burst:request { at = 1000 })
    end
    local out = burst:request {}
    spec.rejected(out, "rate.exceeded")
    spec.header(out, "retry-after", "10")
    spec.header(out, "ratelimit-policy", '"default";q=3;w=30')
  end)

  it("counts limits of another name, rate or kind for themselves", function(plugin)
    local one = by(plugin, {})
    spec.passed(one:request {})
    spec.rejected(one:request {}, "rate.exceeded")
    spec.passed(by(plugin, { name = "other" }):request {})
    spec.passed(by(plugin, { rate = 3 }):request {})
    spec.passed(by(plugin, { per = "2m" }):request {})
    spec.passed(by(plugin, { by = "principal" }):request {})
    spec.rejected(by(plugin, {}):request {}, "rate.exceeded")
  end)

  it("never counts who is exempt", function(plugin)
    local one = by(plugin, { exempt = { "192.0.2.0/24", "2001:db8::1" } })
    for _ = 1, 3 do
      spec.passed(one:request(from "192.0.2.200"))
      spec.passed(one:request(from "2001:db8::1"))
    end
    spec.passed(one:request(from "198.51.100.1"))
    spec.rejected(one:request(from "198.51.100.1"), "rate.exceeded")
  end)

  it("says what is left", function(plugin)
    local out = plugin:response(response(plugin:request { at = 1000 }))
    spec.header(out, "ratelimit-policy", '"default";q=2;w=10')
    spec.header(out, "ratelimit", '"default";r=1;t=5')
    out = plugin:response(response(plugin:request {}))
    spec.header(out, "ratelimit", '"default";r=0;t=10')
    spec.header(out, "retry-after", nil)
  end)

  it("says it in the older form", function(plugin)
    local older = plugin:with { rate = 2, per = "10s", headers = "x" }
    local passed = older:request { at = 1000 }
    local out = older:response(response(passed))
    spec.header(out, "x-ratelimit-limit", "2")
    spec.header(out, "x-ratelimit-remaining", "1")
    spec.header(out, "x-ratelimit-reset", "5")
    spec.header(out, "ratelimit", nil)
    spec.passed(older:request {})
    out = older:request {}
    spec.rejected(out, "rate.exceeded")
    spec.header(out, "x-ratelimit-remaining", "0")
    spec.header(out, "retry-after", "5")
    out = older:response {
      status = 200,
      headers = { ["x-ratelimit-remaining"] = "0", ["x-ratelimit-limit"] = "100" },
      request = { set = passed.set },
    }
    spec.header(out, "x-ratelimit-limit", "100")
    spec.header(out, "x-ratelimit-remaining", "0")
  end)

  it("says it beside other limits", function(plugin)
    local passed = plugin:request {}
    local out = plugin:response {
      status = 200,
      headers = { ratelimit = '"all";r=7;t=1' },
      request = { set = passed.set },
    }
    spec.header(out, "ratelimit", '"all";r=7;t=1, "default";r=1;t=5')
  end)

  it("says nothing of it when it is told so", function(plugin)
    local silent = by(plugin, { headers = "none" })
    local out = silent:response(response(silent:request {}))
    spec.header(out, "ratelimit", nil)
    spec.header(out, "x-ratelimit-limit", nil)
    out = silent:request {}
    spec.rejected(out, "rate.exceeded")
    spec.header(out, "ratelimit", nil)
    spec.header(out, "retry-after", "60")
  end)

  it("keeps nothing for a WebSocket, whose headers no script can read", function(plugin)
    local out = plugin:request { websocket = true }
    spec.passed(out)
    spec.equal(out.set, {})
  end)

  it("stamps no response that it has not counted", function(plugin)
    local out = plugin:response { status = 404 }
    spec.header(out, "ratelimit", nil)
  end)

  it("can be asked before and after authentication", function(plugin)
    for _, phase in ipairs { "authenticate", "authorize" } do
      local one = by(plugin, { phase = phase, name = phase })
      spec.passed(one:request {})
      spec.rejected(one:request {}, "rate.exceeded")
    end
  end)

  it("counts wrong tokens when it stands before the plugin that refuses them", function()
    local chain = spec.chain {
      { plugin = "rate-limit", rate = 2 },
      { plugin = "bearer-auth", tokens = spec.tokens { ada = "s3cret" } },
    }
    local guess = { headers = { authorization = "Bearer guess" } }
    spec.rejected(chain:request(guess), "auth.unknown_token")
    spec.rejected(chain:request(guess), "auth.unknown_token")
    spec.rejected(chain:request(guess), "rate.exceeded")
  end)

  it("refuses settings that make no sense", function()
    spec.refused({}, "rate")
    spec.refused({ rate = 0 }, "rate")
    spec.refused({ rate = 1, per = "0s" }, "per")
    spec.refused({ rate = 1, burst = 0 }, "burst")
    spec.refused({ rate = 1, by = "header" }, 'header: missing, and `by` is "header"')
    spec.refused({ rate = 1, by = "moon" }, "by")
    spec.refused({ rate = 1, name = 'a";q=9' }, "name: expected letters")
    spec.refused({ rate = 1, name = "" }, "name: expected letters")
    spec.refused({ rate = 1, exempt = { "192.0.2.0/99" } }, "exempt")
    spec.refused({ rate = 1, ipv6_prefix = 129 }, "ipv6_prefix")
  end)
end)
