--- plugin.lua: gives each request an id that the browser, the function and the log know it by.

local log = require "streamgate.log"
local uuid = require "streamgate.uuid"

local M = {}

local makers = {
  gateway = function(request)
    return request:id()
  end,
  ["uuid-v4"] = function()
    return uuid.v4()
  end,
  ["uuid-v7"] = function()
    return uuid.v7()
  end,
}

--- Headers that are not for an id: the gateway's own, and those that say where a message ends or who is asking.
local function is_taken(name)
  for _, beginning in ipairs { "nvcf-", "x-nvcf-", "function-", "sec-websocket-", "access-control-", "content-" } do
    if name:sub(1, #beginning) == beginning then
      return true
    end
  end
  for _, taken in ipairs {
    "authorization", "proxy-authorization", "cookie", "set-cookie", "host", "connection", "upgrade", "te", "trailer",
    "transfer-encoding", "expect", "keep-alive", "proxy-connection", "origin", "location", "vary", "date",
    "www-authenticate",
  } do
    if name == taken then
      return true
    end
  end
  return false
end

function M.configure(conf)
  if is_taken(conf.header) then
    error(("header: `%s` has another meaning"):format(conf.header), 0)
  end
end

--- The id that came with the request, when it may be taken: only letters, digits, `-`, `_` and `.`, so that it can
--- stand in a log line, a header or a file name.
local function incoming(request, conf)
  local id = conf.accept and request:header(conf.header)
  if id and #id <= conf.longest and id:find "^[A-Za-z0-9_.-]+$" then
    return id
  end
end

--- @param request streamgate.Request
function M.on_request(request, conf)
  local id = incoming(request, conf)
  if id and id ~= request:id() then
    log.debug(("%s came with the id %s"):format(request:id(), id)) -- the gateway's own lines have the first one
  end
  request:set("request-id", id or makers[conf.make](request))
end

--- A request too broken to be read, or without a route, has only the gateway's id.
local function id_of(request)
  return request:get "request-id" or request:id()
end

--- What the browser sent never goes upstream: either it was taken, or it is replaced.
function M.upstream_request(request, upstream, conf)
  if conf.upstream then
    upstream:set_header(conf.header, id_of(request))
  else
    upstream:remove_header(conf.header)
  end
end

function M.response_headers(request, response, conf)
  if conf.response then
    response:set_header(conf.header, id_of(request))
  end
end

return M
