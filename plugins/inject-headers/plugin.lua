--- plugin.lua: sets and removes headers of the request that goes upstream.

local template = require "streamgate.template"

local M = {}

function M.upstream_request(request, upstream, conf)
  for _, name in ipairs(conf.remove) do
    upstream:remove_header(name)
  end
  for name, text in pairs(conf.set) do
    local value = template.fill(text, request)
    if value then
      upstream:set_header(name, value)
    else
      upstream:remove_header(name) -- the browser's own value must not stand in for a missing one
    end
  end
end

return M
