--- spec.lua: what {{name}} promises.

local spec = require "streamgate.spec"

return spec.plugin("{{name}}", {}, function(it)
-- {{for init}}
  it("begins", function(plugin)
    local out = plugin:timers()
    spec.equal(out.logged, { { level = "debug", message = "{{name}} begins" } })
  end)

-- {{end}}
-- {{for on_request authorize}}
  it("refuses who says no", function(plugin)
    spec.rejected(plugin:request { headers = { ["x-{{name}}"] = "no" } }, "{{name}}.refused")
    spec.passed(plugin:request { headers = { ["x-{{name}}"] = "yes" } })
  end)

-- {{end}}
-- {{for authenticate}}
  it("wants to know who is asking", function(plugin)
    spec.rejected(plugin:request {}, "auth.missing_token")
    spec.set(plugin:request { headers = { ["x-{{name}}"] = "ada" } }, "principal", { id = "ada" })
  end)

-- {{end}}
-- {{for select}}
  it("chooses the function", function(plugin)
    local out = plugin:request { headers = { ["x-{{name}}"] = "f00d" } }
    spec.set(out, "function_id", "f00d")
  end)

-- {{end}}
-- {{for upstream_request}}
  it("tells the function the id of the request", function(plugin)
    local out = plugin:request { id = "r1", headers = { ["x-{{name}}"] = "yes" } }
    spec.upstream(out, "x-{{name}}", "r1")
  end)

-- {{end}}
-- {{for response_headers}}
  it("tells the browser the id of the request", function(plugin)
    local out = plugin:response { status = 200, request = { id = "r1" } }
    spec.header(out, "x-{{name}}", "r1")
  end)

-- {{end}}
-- {{for session_open}}
  it("notes that a session is open", function(plugin)
    local out = plugin:session("session_open", { session = { id = "s1" } })
    spec.equal(out.logged, { { level = "info", message = "session s1 is open" } })
  end)

-- {{end}}
-- {{for session_message}}
  it("ends a session whose browser says no", function(plugin)
    spec.rejected(plugin:session("session_message", { message = { payload = "no" } }), "{{name}}.refused")
    spec.passed(plugin:session("session_message", { message = { payload = "yes" } }))
  end)

-- {{end}}
-- {{for session_tick}}
  it("ends a session that is open for too long", function(plugin)
    spec.passed(plugin:tick { session = { age = 60 } })
    spec.rejected(plugin:with({ longest = "1h" }):tick { session = { age = 3601 } }, "{{name}}.refused")
  end)

-- {{end}}
-- {{for session_park}}
  it("notes that a session has lost its browser", function(plugin)
    local out = plugin:session("session_park", { session = { id = "s1" } })
    spec.equal(out.logged, { { level = "info", message = "session s1 has lost its browser" } })
  end)

-- {{end}}
-- {{for session_resume}}
  it("notes that a session has its browser back", function(plugin)
    local out = plugin:session("session_resume", { session = { id = "s1" } })
    spec.equal(out.logged, { { level = "info", message = "session s1 has its browser back" } })
  end)

-- {{end}}
-- {{for session_end}}
  it("notes that a session is over", function(plugin)
    local out = plugin:session("session_end", { session = { id = "s1" } })
    spec.equal(out.logged, { { level = "info", message = "session s1 is over" } })
  end)

-- {{end}}
-- {{for log}}
  it("notes how a request was answered", function(plugin)
    local out = plugin:log { status = 204, request = { path = "/a" } }
    spec.equal(out.logged, { { level = "info", message = "/a was answered 204" } })
  end)

-- {{end}}
end)
