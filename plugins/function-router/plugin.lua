--- plugin.lua: chooses the function by rules about the request.

local header = require "streamgate.header"

local M = {}

local LONGEST_ID = 128 -- bytes: what the gateway takes for an id of a function

--- The path as a server would understand it: escapes are decoded, but for those of separators, and repeated slashes
--- are one, as when the gateway looks for a route.
local function meaning(path)
  local decoded = path:gsub("%%(%x%x)", function(digits)
    local code = tonumber(digits, 16)
    local stays = code >= 0x80 or code == 0x2f or code == 0x5c
    return not stays and string.char(code) or nil
  end)
  return (decoded:gsub("//+", "/"))
end

local function fits_path(path, segments)
  local rest = meaning(path):gsub("^/", "")
  for _, segment in ipairs(segments) do
    if segment == "**" then
      return true
    end
    if not rest then
      return false
    end
    local part, after = rest:match "^([^/]*)/(.*)$"
    part = part or rest
    local fits = segment == part or segment == "*" and part ~= ""
    if not fits then
      return false
    end
    rest = after
  end
  return rest == nil
end

local function parse_path(text)
  if text:sub(1, 1) ~= "/" then
    error("expected a path that starts with `/`", 0)
  end
  local segments = {}
  for segment in (text:sub(2) .. "/"):gmatch "([^/]*)/" do
    if segments[#segments] == "**" then
      error("`**` stands for the rest, so nothing can follow it", 0)
    end
    if segment:find("*", 1, true) and segment ~= "*" and segment ~= "**" then
      error("`*` stands for a whole segment", 0)
    end
    segments[#segments + 1] = segment
  end
  return function(request)
    return fits_path(request:path(), segments)
  end
end

--- An entry of the offer: `name` as a whole, `key.value`, or `key.*` for any value of the key.
local function parse_subprotocol(text)
  if text == "" or text:find "[%s,]" then
    error("expected an entry of Sec-WebSocket-Protocol", 0)
  end
  local key, value = text:match "^([^.]+)%.(.+)$"
  if key then
    return function(request)
      local offered = request:subprotocol(key)
      return offered ~= nil and (value == "*" or offered == value)
    end
  end
  return function(request)
    for _, entry in ipairs(header.list(request:header "sec-websocket-protocol")) do
      if entry == text then
        return true
      end
    end
    return false
  end
end

--- Whether a value is the wanted one, or a list that has it. Without a wanted one any value fits.
local function is_value(value, wanted)
  if value == nil then
    return false
  end
  if not wanted then
    return true
  end
  for _, it in ipairs(type(value) == "table" and value or { value }) do
    if type(it) ~= "table" and tostring(it) == wanted then
      return true
    end
  end
  return false
end

--- Reads `name` or `name=value`; `get` finds what the request has under the name.
local function parse_pair(text, get)
  local name, value = text:match "^([^=]+)=(.*)$"
  name = name or text
  if name == "" or name:find "[%s%c=]" then
    error("expected `name` or `name=value`", 0)
  end
  return function(request)
    return is_value(get(request, name), value)
  end
end

local parsers = {
  path = parse_path,
  subprotocol = parse_subprotocol,
  header = function(text)
    return parse_pair(text, function(request, name)
      return request:header(name)
    end)
  end,
  query = function(text)
    return parse_pair(text, function(request, name)
      return request:parameter(name)
    end)
  end,
  principal = function(text)
    return parse_pair(text, function(request, name)
      local principal = request:get "principal"
      return principal and principal[name]
    end)
  end,
}

local function check_id(key, id)
  if not id or id == "" or #id > LONGEST_ID or id:find "[^\x21-\x7e]" then
    error(key .. ": expected an id", 0)
  end
end

local function parse_rule(written)
  check_id("function", written["function"])
  if written.version then
    check_id("version", written.version)
  end
  local conditions = {}
  for key, text in pairs(written) do
    if parsers[key] then
      local is_read, result = pcall(parsers[key], text)
      if not is_read then
        error(("%s = %q: %s"):format(key, text, result), 0)
      end
      conditions[#conditions + 1] = result
    elseif key ~= "function" and key ~= "version" then
      error(
        ("unknown key `%s`; there are path, subprotocol, header, query, principal, function, version"):format(key),
        0
      )
    end
  end
  return { conditions = conditions, id = written["function"], version = written.version }
end

function M.configure(conf)
  if #conf.rules == 0 then
    error("rules: give at least one", 0)
  end
  local rules = {}
  for idx, written in ipairs(conf.rules) do
    local before = rules[idx - 1]
    if before and #before.conditions == 0 then
      error(("rules: rule %d is never asked: the one before it has no conditions, so it always fits"):format(idx), 0)
    end
    local is_read, result = pcall(parse_rule, written)
    if not is_read then
      error(("rules: rule %d: %s"):format(idx, result), 0)
    end
    rules[idx] = result
  end
  return { rules = rules, otherwise = conf.otherwise }
end

local function fits(rule, request)
  for _, condition in ipairs(rule.conditions) do
    if not condition(request) then
      return false
    end
  end
  return true
end

--- Whether the principal's own list of functions, where it has one, allows a function. What a plugin chooses the
--- gateway does not question, and most of what rules look at is the browser's to say.
local function may_use(request, id)
  local principal = request:get "principal"
  local functions = principal and principal.functions
  if not functions then
    return true
  end
  for _, it in ipairs(functions) do
    if it == id then
      return true
    end
  end
  return false
end

--- @param request streamgate.Request
function M.select(request, conf)
  if request:get "function_id" then
    return -- another plugin has chosen
  end
  for _, rule in ipairs(conf.rules) do
    if fits(rule, request) then
      if not may_use(request, rule.id) then
        return request:reject "function.forbidden"
      end
      request:set("function_id", rule.id)
      if rule.version then
        request:set("function_version_id", rule.version)
      end
      return
    end
  end
  if conf.otherwise == "reject" then
    return request:reject "function.unrouted"
  end
end

return M
