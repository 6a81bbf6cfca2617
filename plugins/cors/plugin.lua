--- plugin.lua: answers CORS preflights, and stamps the CORS headers on every response.

local origin = require "streamgate.origin"

local M = {}

--- What the page of this request is granted: the headers, or nil when its origin is not on the list.
local function grant(request, conf)
  if not conf.origins then
    return { ["access-control-allow-origin"] = "*" }
  end
  local page = request:header "origin"
  if not origin.is_one_of(conf.origins, page) then
    return nil
  end
  local headers = { ["access-control-allow-origin"] = page }
  if conf.credentials then
    headers["access-control-allow-credentials"] = "true"
  end
  return headers
end

--- A browser sends no credentials with a preflight, so it is answered before anybody asks for them.
function M.on_request(request, conf)
  if not request:is_preflight() then
    return
  end
  local headers = grant(request, conf)
  if not headers then
    return request:respond(204, { vary = "Origin" })
  end
  headers["access-control-allow-methods"] = table.concat(conf.allow_methods, ", ")
  headers["access-control-max-age"] = ("%d"):format(conf.max_age // 1)
  if headers["access-control-allow-credentials"] then
    -- With credentials `*` is an ordinary name (Fetch, 3.3.4), so the asked names are allowed one by one.
    headers["access-control-allow-headers"] = request:header "access-control-request-headers"
  else
    headers["access-control-allow-headers"] = "*, authorization" -- `*` does not stand for authorization
  end
  if conf.origins then
    headers.vary = "Origin, Access-Control-Request-Headers"
  end
  return request:respond(204, headers)
end

function M.response_headers(request, response, conf)
  if request:is_preflight() and response:status() == 204 then
    return -- it has its headers already
  end
  if conf.origins then
    response:add_header("vary", "Origin")
  end
  response:remove_header "access-control-allow-origin"
  response:remove_header "access-control-allow-credentials"
  local headers = grant(request, conf)
  if not headers then
    return
  end
  if headers["access-control-allow-credentials"] then
    headers["access-control-expose-headers"] = table.concat(response:names(), ", ")
  else
    headers["access-control-expose-headers"] = "*"
    headers["access-control-allow-headers"] = "*"
  end
  for name, value in pairs(headers) do
    response:set_header(name, value)
  end
end

return M
