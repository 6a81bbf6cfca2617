--- Texts with placeholders that a request fills in: `{principal.tenant}`.

local M = {}

local sources = {
  ["request.id"] = function(request)
    return request:id()
  end,
  ["request.method"] = function(request)
    return request:method()
  end,
  ["request.path"] = function(request)
    return request:path()
  end,
  ["request.host"] = function(request)
    return request:header "host"
  end,
  ["client.ip"] = function(request)
    return request:client_ip()
  end,
}

local function value_of(name, request)
  local attribute = name:match "^principal%.([%w_%-]+)$"
  if attribute then
    local principal = request:get "principal"
    local value = principal and principal[attribute]
    return (type(value) == "string" or type(value) == "number") and tostring(value) or nil
  end
  local source = sources[name]
  if not source then
    error("unknown placeholder {" .. name .. "}", 0)
  end
  return source(request)
end

--- Fills the placeholders of a text: `{principal.id}`, `{principal.ATTRIBUTE}`, `{request.id}`, `{request.method}`,
--- `{request.path}`, `{request.host}`, `{client.ip}`. Gives nil when one of them has no value.
--- @param text string
--- @param request streamgate.Request
--- @return string?
function M.fill(text, request)
  local complete = true
  local filled = text:gsub("{([^{}]*)}", function(name)
    local value = value_of(name, request)
    complete = complete and value ~= nil
    return value or ""
  end)
  return complete and filled or nil
end

return M
