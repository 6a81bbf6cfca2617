--- Origins of web pages: `scheme://host` or `scheme://host:port`.

local M = {}

--- Whether a page's origin is one of a list. Scheme and host are compared without case.
--- @param list string[]
--- @param origin string?
--- @return boolean
function M.is_one_of(list, origin)
  if not origin then
    return false
  end
  local lower = origin:lower()
  for _, allowed in ipairs(list) do
    if allowed:lower() == lower then
      return true
    end
  end
  return false
end

return M
