--- spec.lua: what session-limit promises.

local spec = require "streamgate.spec"

local function open(plugin, principal, id, more)
  local request = { websocket = true, principal = principal and { id = principal }, session_id = id }
  for key, value in pairs(more or {}) do
    request[key] = value
  end
  return plugin:request(request)
end

local function session(principal, id, more)
  local it = { principal = principal and { id = principal }, session = { id = id, function_id = "f1" } }
  for key, value in pairs(more or {}) do
    it[key] = value
  end
  return it
end

return spec.plugin("session-limit", { per_principal = 2 }, function(it)
  it("lets a principal have as many sessions as it may, and no more", function(plugin)
    spec.passed(open(plugin, "ada", "s1"))
    spec.passed(open(plugin, "ada", "s2"))
    spec.rejected(open(plugin, "ada", "s3"), "sessions.too_many")
    spec.passed(open(plugin, "bob", "s4"))
  end)

  it("counts no plain requests", function(plugin)
    for _ = 1, 3 do
      spec.passed(plugin:request { principal = { id = "ada" } })
    end
    spec.passed(open(plugin, "ada", "s1"))
    spec.passed(open(plugin, "ada", "s2"))
  end)

  it("counts a session that comes back once", function(plugin)
    spec.passed(open(plugin, "ada", "s1"))
    spec.passed(open(plugin, "ada", "s2"))
    spec.passed(open(plugin, "ada", "s1"))
    spec.passed(open(plugin, "ada", "s2"))
    spec.rejected(open(plugin, "ada", "s3"), "sessions.too_many")
  end)

  it("gives the place of a session that has ended to the next", function(plugin)
    spec.passed(open(plugin, "ada", "s1"))
    spec.passed(open(plugin, "ada", "s2"))
    plugin:session("session_end", session("ada", "s1"))
    spec.passed(open(plugin, "ada", "s3"))
    spec.rejected(open(plugin, "ada", "s4"), "sessions.too_many")
  end)

  it("gives back the place of a request that became no session", function(plugin)
    local out = open(plugin, "ada", "s1")
    spec.passed(open(plugin, "ada", "s2"))
    local set = { ["session-limit"] = out.set["session-limit"] }
    local request = { websocket = true, principal = { id = "ada" }, session_id = "s1", set = set }
    plugin:log { request = request, status = 101 }
    plugin:log { request = request, status = 101, code = "resumed" }
    spec.rejected(open(plugin, "ada", "s3"), "sessions.too_many")
    plugin:log { request = request, status = 502, code = "upstream.unreachable" }
    spec.passed(open(plugin, "ada", "s3"))
    request.session_id = "s2"
    plugin:log { request = request, status = 101, code = "upstream.limit" } -- told by a Close frame
    spec.passed(open(plugin, "ada", "s4"))
  end)

  it("gives nothing back for a request that took nothing", function(plugin)
    spec.passed(open(plugin, "ada", "s1"))
    spec.passed(open(plugin, "ada", "s2"))
    plugin:log { request = { websocket = true, principal = { id = "ada" }, session_id = "s1" }, status = 409 }
    plugin:log { request = { principal = { id = "ada" } }, status = 200 }
    plugin:log { request = {}, status = 400 }
    spec.rejected(open(plugin, "ada", "s3"), "sessions.too_many")
  end)

  it("keeps the place of an open session, and lets that of a lost one go", function(plugin)
    spec.passed(open(plugin, "ada", "s1", { at = 1000 }))
    spec.passed(open(plugin, "ada", "s2"))
    plugin:tick(session("ada", "s1", { at = 1100 }))
    spec.passed(open(plugin, "ada", "s3", { at = 1121 })) -- s2 was not seen for two minutes
    spec.rejected(open(plugin, "ada", "s4"), "sessions.too_many")
    spec.passed(open(plugin, "ada", "s4", { at = 1221 })) -- and now s1 was not
  end)

  it("keeps the place of a session whose earlier connection ends late", function(plugin)
    for _, phase in ipairs { "session_open", "session_resume" } do
      local id = phase .. " "
      spec.passed(open(plugin, phase, id .. 1))
      spec.passed(open(plugin, phase, id .. 2))
      plugin:session("session_end", session(phase, id .. 1))
      plugin:session(phase, session(phase, id .. 1))
      spec.rejected(open(plugin, phase, id .. 3), "sessions.too_many")
    end
  end)

  it("never ends a session that is open", function(plugin)
    for idx = 1, 5 do
      spec.passed(plugin:tick(session("ada", "s" .. idx)))
    end
    spec.rejected(open(plugin, "ada", "s6"), "sessions.too_many")
  end)

  it("counts by address where nobody was authenticated", function(plugin)
    spec.passed(open(plugin, nil, "s1", { client_ip = "192.0.2.1" }))
    spec.passed(open(plugin, nil, "s2", { client_ip = "192.0.2.1" }))
    spec.rejected(open(plugin, nil, "s3", { client_ip = "192.0.2.1" }), "sessions.too_many")
    spec.passed(open(plugin, nil, "s3", { client_ip = "192.0.2.2" }))
    spec.passed(open(plugin, "192.0.2.1", "s4", { client_ip = "192.0.2.1" }))
  end)

  it("lets a principal have a limit of its own", function(plugin)
    local own = plugin:with { per_principal = 1, attribute = "max_sessions" }
    local function ada(limit, id)
      return own:request { websocket = true, session_id = id, principal = { id = "ada", max_sessions = limit } }
    end
    spec.passed(ada(3, "s1"))
    spec.passed(ada(3, "s2"))
    spec.passed(ada("3", "s3"))
    spec.rejected(ada(3, "s4"), "sessions.too_many")
    spec.passed(open(own, "bob", "s5"))
    spec.rejected(open(own, "bob", "s6"), "sessions.too_many")
  end)

  it("lets a principal with the limit 0 have none, and takes no nonsense for a limit", function(plugin)
    local own = plugin:with { per_principal = 1, attribute = "max_sessions" }
    local function ask(id, limit, session_id)
      return own:request { websocket = true, session_id = session_id, principal = { id = id, max_sessions = limit } }
    end
    spec.rejected(ask("none", 0, "s1"), "sessions.too_many")
    for idx, limit in ipairs { -1, 2.5, "many", true, 1e300, "0x", { 5 } } do
      spec.passed(ask("p" .. idx, limit, "a" .. idx))
      spec.rejected(ask("p" .. idx, limit, "b" .. idx), "sessions.too_many")
    end
  end)

  it("bounds the sessions of a function", function(plugin)
    local few = plugin:with { per_function = 1 }
    spec.passed(open(few, "ada", "s1", { set = { function_id = "f1" } }))
    spec.rejected(open(few, "bob", "s2", { set = { function_id = "f1" } }), "sessions.function_full")
    spec.passed(open(few, "bob", "s3", { set = { function_id = "f2" } }))
    few:session("session_end", session("ada", "s1"))
    spec.passed(open(few, "bob", "s4", { set = { function_id = "f1" } }))
  end)

  it("bounds all sessions together", function(plugin)
    local few = plugin:with { total = 2 }
    spec.passed(open(few, "ada", "s1"))
    spec.passed(open(few, nil, "s2"))
    spec.rejected(open(few, "bob", "s3"), "sessions.all_taken")
  end)

  it("holds nothing for a request that it refuses", function(plugin)
    local both = plugin:with { per_principal = 1, per_function = 1, total = 2 }
    spec.passed(open(both, "ada", "s1", { set = { function_id = "f1" } }))
    spec.rejected(open(both, "bob", "s2", { set = { function_id = "f1" } }), "sessions.function_full")
    spec.passed(open(both, "bob", "s3", { set = { function_id = "f2" } }))
    spec.rejected(open(both, "eve", "s4", { set = { function_id = "f3" } }), "sessions.all_taken")
    both:session("session_end", session("ada", "s1"))
    spec.passed(open(both, "eve", "s5", { set = { function_id = "f3" } }))
  end)

  it("counts limits of another name for themselves", function(plugin)
    local one = plugin:with { total = 1 }
    spec.passed(open(one, "ada", "s1"))
    spec.rejected(open(one, "ada", "s2"), "sessions.all_taken")
    spec.passed(open(plugin:with { total = 1, name = "other" }, "ada", "s2"))
    spec.rejected(open(plugin:with { total = 1, per_function = 9 }, "ada", "s3"), "sessions.all_taken")
  end)

  it("takes principals of any length", function(plugin)
    local id = ("é\"\\"):rep(64)
    spec.passed(open(plugin, id, "s1"))
    spec.passed(open(plugin, id, "s2"))
    spec.rejected(open(plugin, id, "s3"), "sessions.too_many")
  end)

  it("holds a place for as long as it was told", function(plugin)
    local short = plugin:with { total = 1, lease = "10s" }
    spec.passed(open(short, "ada", "s1", { at = 1000 }))
    spec.rejected(open(short, "ada", "s2", { at = 1009 }), "sessions.all_taken")
    spec.passed(open(short, "ada", "s2", { at = 1011 }))
  end)

  it("refuses settings that make no sense", function()
    spec.refused({}, "set at least one of per_principal")
    spec.refused({ per_principal = 0 }, "per_principal")
    spec.refused({ total = -1 }, "total")
    spec.refused({ total = 1, lease = "1s" }, "lease")
    spec.refused({ total = 1, on_unavailable = "perhaps" }, "on_unavailable")
  end)
end)
