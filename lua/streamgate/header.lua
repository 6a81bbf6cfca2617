--- Header values that are lists.

local M = {}

--- The items of a comma-separated list, without the space around them.
--- @param value string?
--- @return string[]
function M.list(value)
  local items = {}
  for item in (value or ""):gmatch "[^,]+" do
    local trimmed = item:match "^[ \t]*([^ \t].-)[ \t]*$"
    if trimmed then
      items[#items + 1] = trimmed
    end
  end
  return items
end

--- Whether a comma-separated list has an item. Items are compared without case.
--- @param value string?
--- @param item string
--- @return boolean
function M.has(value, item)
  for _, it in ipairs(M.list(value)) do
    if it:lower() == item:lower() then
      return true
    end
  end
  return false
end

return M
