--- plugin.lua: writes a line of chosen fields for each request and each session.

local crypto = require "streamgate.crypto"
local json = require "streamgate.json"
local log = require "streamgate.log"
local time = require "streamgate.time"

local M = {}

local LONGEST_VALUE = 512 -- bytes of one value; the rest is cut
local MOST_ITEMS = 32 -- of a value that is a list

--- Where the fields of a line come from. What is absent here is not known in that line and left out of it.
local of_request = {
  time = function()
    return time.rfc3339(time.now())
  end,
  request = function(request)
    return request:id()
  end,
  method = function(request)
    return request:method()
  end,
  path = function(request)
    return request:path()
  end,
  query = function(request)
    return request:query()
  end,
  route = function(request)
    return request:route()
  end,
  client_ip = function(request)
    return request:client_ip()
  end,
  tls = function(request)
    return request:is_tls()
  end,
  websocket = function(request)
    return request:is_websocket()
  end,
  principal = function(request)
    local principal = request:get "principal"
    return principal and principal.id
  end,
  ["function"] = function(request)
    return request:get "function_id"
  end,
  session = function(request)
    return request:session_id()
  end,
  status = function(_, response)
    return response:status()
  end,
  code = function(_, response)
    return response:code()
  end,
  took = function(request)
    local began = request:get "access-log.began"
    return began and math.max(0, time.monotonic() - began)
  end,
}

local of_session = {
  time = of_request.time,
  request = of_request.request,
  method = of_request.method,
  path = of_request.path,
  route = of_request.route,
  client_ip = of_request.client_ip,
  tls = of_request.tls,
  websocket = of_request.websocket,
  principal = of_request.principal,
  ["function"] = function(_, session)
    return session:function_id()
  end,
  session = function(_, session)
    return session:id()
  end,
  cause = function(_, session)
    return session:cause()
  end,
  age = function(_, session)
    return session:age()
  end,
  received = function(_, session)
    return session:received()
  end,
  sent = function(_, session)
    return session:sent()
  end,
}

--- Fields with a name of their own: `principal.tenant`. The headers of a request are gone when its session ends.
local families = {
  principal = function(name)
    local function get(request)
      local principal = request:get "principal"
      return principal and principal[name]
    end
    return get, get
  end,
  set = function(name)
    local function get(request)
      return request:get(name)
    end
    return get, get
  end,
  header = function(name)
    return function(request)
      return request:header(name)
    end
  end,
  response = function(name)
    return function(_, response)
      return response:header(name)
    end
  end,
  parameter = function(name)
    return function(request)
      return request:parameter(name)
    end
  end,
}

--- Headers that carry credentials: no setting brings them into a log.
local secrets = {
  authorization = true,
  ["proxy-authorization"] = true,
  cookie = true,
  ["set-cookie"] = true,
  ["sec-websocket-protocol"] = true,
}

--- A field as it is named in the settings: how it is got for the line of a request, and for that of a session.
local function parse_field(name)
  if of_request[name] or of_session[name] then
    return of_request[name], of_session[name]
  end
  local family, member = name:match "^(%l+)%.([^%s%c]+)$"
  if not families[family] then
    error(("fields: there is no `%s`"):format(name), 0)
  end
  if (family == "header" or family == "response") then
    if not member:find "^[!#$%%&'*+%-.^_`|~%w]+$" then
      error(("fields: `%s` names no header"):format(name), 0)
    end
    if secrets[member:lower()] then
      error(("fields: `%s` carries credentials, which are in no log"):format(name), 0)
    end
  end
  return families[family](member)
end

function M.configure(conf)
  if #conf.fields == 0 then
    error("fields: name at least one", 0)
  end
  local request_fields, session_fields, seen = {}, {}, {}
  for _, name in ipairs(conf.fields) do
    if seen[name] then
      error(("fields: `%s` is there twice"):format(name), 0)
    end
    seen[name] = true
    local get_request, get_session = parse_field(name)
    if get_request then
      request_fields[#request_fields + 1] = { name = name, get = get_request }
    end
    if get_session then
      session_fields[#session_fields + 1] = { name = name, get = get_session }
    end
  end
  return {
    request_fields = request_fields,
    session_fields = session_fields,
    requests = conf.lines ~= "sessions",
    sessions = conf.lines ~= "requests",
    json = conf.format == "json",
    sample = conf.sample,
    failures = conf.failures,
  }
end

--- A text that can stand in a line: cut, and in UTF-8. Other bytes become `\xHH`, and in a line of text control
--- characters too; JSON has escapes of its own.
local function printable(text, is_json)
  local is_cut = #text > LONGEST_VALUE
  if is_cut then
    local last = LONGEST_VALUE
    while last > LONGEST_VALUE - 4 and text:byte(last + 1) & 0xc0 == 0x80 do
      last = last - 1 -- not in the middle of a character
    end
    text = text:sub(1, last)
  end
  local is_utf8 = utf8.len(text)
  if not (is_utf8 and is_json) then
    text = text:gsub(is_utf8 and "[%c\\]" or "[%c\\\x80-\xff]", function(byte)
      return byte == "\\" and "\\\\" or ("\\x%02x"):format(byte:byte())
    end)
  end
  return is_cut and text .. "…" or text
end

--- A value as a log can have it: a text, a number, a boolean, or a list of them; nil for anything else.
local function plain(value, is_json)
  if type(value) == "string" then
    return printable(value, is_json)
  elseif math.type(value) == "float" then
    local is_finite = value == value and math.abs(value) < math.huge
    return is_finite and math.floor(value * 1000 + 0.5) / 1000 or nil -- milliseconds are enough
  elseif type(value) == "number" or type(value) == "boolean" then
    return value
  elseif type(value) == "table" and #value > 0 then
    local items = {}
    for idx = 1, math.min(#value, MOST_ITEMS) do
      local item = value[idx]
      if type(item) ~= "table" then
        item = plain(item, is_json)
      else
        item = nil
      end
      items[idx] = item == nil and "?" or item -- a list has no gaps
    end
    return json.array(items)
  end
end

local function shown(value)
  if type(value) == "table" then
    local items = {}
    for idx, item in ipairs(value) do
      items[idx] = tostring(item)
    end
    value = table.concat(items, ",")
  end
  if type(value) == "string" and (value == "" or value:find '[ "=,]') then
    return '"' .. value:gsub('"', '\\"') .. '"'
  end
  return tostring(value)
end

local function write(conf, kind, fields, request, other)
  local values, texts = { kind = kind }, { "kind=" .. kind }
  for _, field in ipairs(fields) do
    local value = plain(field.get(request, other), conf.json)
    if value ~= nil then
      values[field.name] = value
      texts[#texts + 1] = field.name .. "=" .. shown(value)
    end
  end
  log.info(conf.json and json.encode(values) or table.concat(texts, " "))
end

--- Whether a line is written. The request's id decides and not chance, so that a request and its session have both
--- lines or none, in every replica.
local function is_chosen(conf, request)
  if conf.sample >= 1 then
    return true
  end
  local number = (">I4"):unpack(crypto.sha256(request:id()))
  return number / 0x100000000 < conf.sample
end

--- @param request streamgate.Request
function M.on_request(request)
  request:set("access-log.began", time.monotonic())
end

function M.log(request, response, conf)
  if not conf.requests then
    return
  end
  local has_failed = response:code() ~= nil or response:status() >= 400
  if has_failed and conf.failures or is_chosen(conf, request) then
    write(conf, "request", conf.request_fields, request, response)
  end
end

function M.session_end(request, session, conf)
  if conf.sessions and is_chosen(conf, request) then
    write(conf, "session", conf.session_fields, request, session)
  end
end

return M
