--- plugin.lua: sets and removes headers of the request that goes upstream.

local template = require "streamgate.template"

local M = {}

function M.configure(conf)
  local set = {}
  for name, text in pairs(conf.set) do
    set[#set + 1] = { name = name, fill = template.compile(text) }
  end
  return { remove = conf.remove, set = set }
end

function M.upstream_request(request, upstream, conf)
  for _, name in ipairs(conf.remove) do
    upstream:remove_header(name)
  end
  for _, header in ipairs(conf.set) do
    local value = header.fill(request)
    if value then
      upstream:set_header(header.name, value)
    else
      upstream:remove_header(header.name) -- the browser's own value must not stand in for a missing one
    end
  end
end

return M
