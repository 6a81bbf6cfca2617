--- Tests of plugins: what a plugin promises, said as code.

local harness = require "streamgate.harness"

local M = {}

local Plugin = {}
Plugin.__index = Plugin

--- Sends a request through the plugin's phases, up to the request that goes upstream. Fields: `method`, `path`,
--- `query`, `headers`, `client_ip`, `tls`, `websocket`, `principal`, `set`, `session_id`; `at`: the time, in seconds
--- since the Unix epoch (0 at the beginning of a test), for this run and those that follow.
function Plugin:request(request)
  return harness.request(self, request or {})
end

--- Tells the plugin about a session, in one of its phases. Fields: `principal`, `set`, `at`, and `session` with `id`,
--- `function_id`, `age`, `cause`, `received`, `sent`. In `session_message` also `message` with `from` (`browser`), `kind`
--- (`text`) and `payload`; `out.message` has the `payload` that is passed on, or is nil.
function Plugin:session(phase, session)
  return harness.session(self, phase, session or {})
end

--- Asks the plugin about an open session, in `session_tick`. Fields: those of `session`.
function Plugin:tick(session)
  return harness.session(self, "session_tick", session or {})
end

--- Sends a response through `response_headers`. Fields: `status`, `headers`, `request`, `at`.
function Plugin:response(response)
  return harness.response(self, response or {})
end

--- Tells the plugin that all is over, in `log`. Fields: `status`, `headers`, `code`, `request`, `at`.
function Plugin:log(response)
  return harness.log(self, response or {})
end

--- Runs `init`, and then each timer once. Fields: `at`.
function Plugin:timers(options)
  return harness.timers(self, options or {})
end

--- The same plugin with other settings.
function Plugin:with(settings)
  return setmetatable({ settings = settings }, Plugin)
end

--- A whole chain, of plugins by their names or as tables with `plugin` and settings, as in a route.
function M.chain(steps)
  return setmetatable({ chain = steps }, Plugin)
end

--- A token file made of a table from principals to tokens, or to tables with `token` and attributes.
function M.tokens(principals)
  return harness.tokens(principals)
end

--- A file with that text, for a setting that is a secret.
function M.file(text)
  return harness.file(text)
end

--- Has a function answer the HTTP requests of plugins, from now on in this test. It gets `method`, `url`, `headers` and
--- `body`, and returns a table with `status`, `headers` and `body`, or nil and a reason.
function M.http(answer)
  harness.http(answer)
end

--- The requests that plugins made since `spec.http`.
function M.requests()
  return harness.requests() or {}
end

--- What the plugin has counted in this test: a number; of a histogram a table with `count` and `sum`. Labels go by their
--- names. A metric of another plugin of the chain has its full name, `streamgate_plugin_…`.
--- @param name string
--- @param labels? table<string, string|number|boolean>
function M.metric(name, labels)
  return harness.metric(name, labels)
end

--- A token with these claims, signed with a key of the spec. Options: `kid`, `algorithm` (`ES256` or `EdDSA`), or `secret`
--- for HS256.
function M.jwt(claims, options)
  return harness.jwt(claims, options)
end

--- The JWK Set with the public keys of the tokens so far.
function M.jwks()
  return harness.jwks()
end

--- The tests of one plugin.
--- @param name string
--- @param settings table
--- @param describe fun(it: fun(what: string, test: fun(plugin: table)))
function M.plugin(name, settings, describe)
  local suite = { name = name, tests = {} }
  describe(function(what, test)
    suite.tests[#suite.tests + 1] = {
      what = what,
      run = function()
        test(setmetatable({ settings = settings }, Plugin))
      end,
    }
  end)
  return suite
end

local function shown(value)
  if type(value) == "string" then
    return (("%q"):format(value):gsub("\\\n", "\\n"):gsub("\\9", "\\t")) -- in one line
  elseif type(value) ~= "table" then
    return tostring(value)
  end
  local keys = {}
  for key in pairs(value) do
    keys[#keys + 1] = tostring(key)
  end
  table.sort(keys)
  for idx, key in ipairs(keys) do
    local item = value[key]
    if item == nil then
      item = value[tonumber(key)]
    end
    keys[idx] = key .. " = " .. shown(item)
  end
  return "{ " .. table.concat(keys, ", ") .. " }"
end

local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then
    return a == b
  end
  for key, value in pairs(a) do
    if not same(value, b[key]) then
      return false
    end
  end
  for key in pairs(b) do
    if a[key] == nil then
      return false
    end
  end
  return true
end

--- Fails unless both are the same, tables by content.
function M.equal(got, expected, what)
  if not same(got, expected) then
    error(("%sexpected %s, got %s"):format(what and what .. ": " or "", shown(expected), shown(got)), 2)
  end
end

--- A text of several lines, below the one that speaks of it.
local function below(text)
  return "\n  " .. text:gsub("\n", "\n  "):gsub("\t", "  ")
end

--- How it ended, and why where the plugin failed.
local function ending(out)
  if not out.code and not out.status then
    return "it passed"
  end
  local ended = out.code and ("the rejection %s (%s)"):format(out.code, out.status) or "the answer " .. tostring(out.status)
  return out.failure and ended .. below(out.failure) or ended
end

--- Fails unless the request went on.
function M.passed(out)
  if out.code or out.status then
    error("expected the request to pass, got " .. ending(out), 2)
  end
end

--- Fails unless the request was rejected with that code.
function M.rejected(out, code)
  if out.code ~= code then
    error(("expected the rejection %s, got %s"):format(code, ending(out)), 2)
  end
end

--- Fails unless the plugin answered with that status.
function M.responded(out, status)
  if out.code or out.status ~= status then
    error(("expected the answer %d, got %s"):format(status, ending(out)), 2)
  end
end

--- Fails unless a header of the answer (or of the response) has that value; nil: unless it is absent.
function M.header(out, name, value)
  if out.headers[name] ~= value then
    error(("header %s: expected %s, got %s"):format(name, shown(value), shown(out.headers[name])), 2)
  end
end

--- Fails unless a header that goes upstream has that value; nil: unless it is absent.
function M.upstream(out, name, value)
  if out.upstream[name] ~= value then
    error(("upstream header %s: expected %s, got %s"):format(name, shown(value), shown(out.upstream[name])), 2)
  end
end

--- Fails unless the plugin set something for later plugins.
function M.set(out, name, value)
  if not same(out.set[name], value) then
    error(("%s: expected %s, got %s"):format(name, shown(value), shown(out.set[name])), 2)
  end
end

--- Fails unless the plugin refuses these settings with a message that has this text.
function M.refused(settings, text)
  local message = harness.check { settings = settings }
  if not message or not message:find(text, 1, true) then
    error(("expected the settings to be refused with %q, got"):format(text) .. (message and below(message) or " no refusal"), 2)
  end
end

--- Fails unless the plugin failed with an error that has this text.
function M.failed(out, text)
  if not out.failure or not out.failure:find(text, 1, true) then
    error(("expected a failure with %q, got"):format(text) .. (out.failure and below(out.failure) or " none"), 2)
  end
end

return M
