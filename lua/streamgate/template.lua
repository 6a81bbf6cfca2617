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

--- What gives the value of a placeholder.
local function source_of(name)
  local attribute = name:match "^principal%.([%w_%-]+)$"
  if not attribute then
    return sources[name] or error("unknown placeholder {" .. name .. "}", 0)
  end
  return function(request)
    local principal = request:get "principal"
    local value = principal and principal[attribute]
    return (type(value) == "string" or type(value) == "number") and tostring(value) or nil
  end
end

--- Makes a function of a text with placeholders: it takes the request and gives the text filled in, or nil when one of
--- them has no value. The placeholders are `{principal.id}`, `{principal.ATTRIBUTE}`, `{request.id}`, `{request.method}`,
--- `{request.path}`, `{request.host}` and `{client.ip}`; another one is an error. For `configure`.
--- @param text string
--- @return fun(request: streamgate.Request): string?
function M.compile(text)
  local parts = {} -- texts as they are, and functions
  local rest = 1
  for first, name, after in text:gmatch "(){([^{}]*)}()" do
    parts[#parts + 1] = text:sub(rest, first - 1)
    parts[#parts + 1] = source_of(name)
    rest = after
  end
  if #parts == 0 then
    return function()
      return text
    end
  end
  local last = text:sub(rest)
  return function(request)
    local filled = ""
    for _, part in ipairs(parts) do
      local value = part
      if type(part) == "function" then
        value = part(request)
        if not value then
          return nil
        end
      end
      filled = filled .. value
    end
    return filled .. last
  end
end

return M
