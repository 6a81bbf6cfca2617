--- prelude.lua: the libraries of plugins, without what could hold up a worker.
--
-- A hook stops Lua code that has used up its time, but no function written in C, no coroutine but the one it is set on,
-- and no message handler of `xpcall`. So the functions here that may run for long without reaching Lua code are left to
-- C only while their work is small, and are done in Lua above that.

local stock, begin, enter, leave, pattern, pending = ...

local error, getmetatable, pcall, rawequal, rawget, rawlen, select, type =
  stock.error, stock.getmetatable, stock.pcall, stock.rawequal, stock.rawget, stock.rawlen, stock.select, stock.type
local co_create, co_resume, co_yield, co_close = stock.coroutine.create, stock.coroutine.resume, stock.coroutine.yield, stock.coroutine.close
local concat, insert, move, remove, sort, pack, unpack =
  stock.table.concat, stock.table.insert, stock.table.move, stock.table.remove, stock.table.sort, stock.table.pack, stock.table.unpack
local integer = stock.math.tointeger
local rep, tonumber, tostring = stock.string.rep, stock.tonumber, stock.tostring

--- Elements of a table that a C function may go over: some tens of microseconds.
local FEW = 10000
--- Largest string that one call makes, in bytes.
local LONGEST = 1 << 20

local M = {}

local function copy(from, absent)
  local to = {}
  for key, value in stock.pairs(from) do
    to[key] = value
  end
  for _, key in stock.ipairs(absent) do
    to[key] = nil
  end
  return to
end

for _, name in stock.ipairs { "assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "rawequal", "rawget", "rawlen", "rawset", "select", "tonumber", "tostring", "type", "_VERSION" } do
  M[name] = stock[name]
end

--- A message handler runs while hooks are off, so it is called once the function is over.
local function handled(handler, ok, ...)
  if ok then
    return true, ...
  end
  return false, handler((...))
end

function M.xpcall(f, handler, ...)
  return handled(handler, pcall(f, ...))
end

function M.setmetatable(t, metatable)
  -- Finalisers run at moments of the collector's choosing, outside of every phase.
  if type(metatable) == "table" and rawget(metatable, "__gc") ~= nil then
    error("setmetatable: `__gc` is not available to plugins", 2)
  end
  return stock.setmetatable(t, metatable)
end

function M.collectgarbage(option)
  if option ~= nil and option ~= "count" then
    error("collectgarbage: only \"count\" is available to plugins", 2)
  end
  return stock.collectgarbage "count"
end

M.math = copy(stock.math, { "randomseed" })
M.utf8 = copy(stock.utf8, {})
M.os = copy(stock.os, { "execute", "exit", "getenv", "remove", "rename", "setlocale", "tmpname" })

M.string = copy(stock.string, { "dump" })
M.string.find, M.string.match, M.string.gmatch, M.string.gsub = pattern.find, pattern.match, pattern.gmatch, pattern.gsub

function M.string.rep(s, n, separator)
  local times, size = integer(tonumber(n)), #tostring(s) + #tostring(separator or "")
  if times and times > 0 then
    if size == 0 then
      return "" -- as often as it may be: C would go on and on
    elseif times > LONGEST // size then
      error("string.rep: the result is longer than " .. LONGEST .. " bytes", 2)
    end
  end
  return rep(s, times or n, separator)
end

--- Whether C may go over the whole table: it is small, and no access reaches a metatable.
local function is_small(t)
  return type(t) ~= "table" or (getmetatable(t) == nil and rawlen(t) <= FEW)
end

M.table = copy(stock.table, {})

function M.table.insert(t, ...)
  if is_small(t) or (getmetatable(t) == nil and select("#", ...) == 1) then
    return insert(t, ...)
  end
  local n = select("#", ...)
  local last = #t + 1
  if n == 1 then
    t[last] = (...)
    return
  elseif n ~= 2 then
    error("wrong number of arguments to 'insert'", 2)
  end
  local at, value = ...
  at = integer(at)
  if not at or at < 1 or at > last then
    error("bad argument #2 to 'insert' (position out of bounds)", 2)
  end
  for i = last, at + 1, -1 do
    t[i] = t[i - 1]
  end
  t[at] = value
end

function M.table.remove(t, at)
  if is_small(t) or (getmetatable(t) == nil and at == nil) then
    if at == nil then
      return remove(t)
    end
    return remove(t, at)
  end
  local size = #t
  at = at == nil and size or integer(at)
  if not at or (at ~= size and (at < 1 or at > size + 1)) then
    error("bad argument #2 to 'remove' (position out of bounds)", 2)
  end
  local value = t[at]
  while at < size do
    t[at] = t[at + 1]
    at = at + 1
  end
  t[at] = nil
  return value
end

function M.table.move(from, first, last, at, to)
  first, last, at = integer(first) or first, integer(last) or last, integer(at) or at
  to = to == nil and from or to
  local may_be_long = type(first) == "number" and type(last) == "number" and (last - first >= FEW or (last > 0 and first < 0))
  if is_small(from) and is_small(to) and not may_be_long then
    return move(from, first, last, at, to)
  end
  if last < first then
    return to
  end
  if at > last or at <= first or not rawequal(from, to) then
    for i = 0, last - first do
      to[at + i] = from[first + i]
    end
  else
    for i = last - first, 0, -1 do
      to[at + i] = from[first + i]
    end
  end
  return to
end

function M.table.concat(t, separator, first, last)
  if type(t) == "table" and getmetatable(t) ~= nil then
    local parts = {}
    first, last = first or 1, last or #t
    for i = first, last do
      parts[i - first + 1] = t[i]
    end
    return concat(parts, separator, 1, last - first + 1)
  end
  return concat(t, separator, first, last or rawlen(t)) -- it stops at the first hole
end

local function is_less(a, b)
  return a < b
end

function M.table.sort(t, before)
  if before == nil and not is_small(t) then
    before = is_less -- so that the hook has something to stop
  end
  return sort(t, before)
end

M.coroutine = copy(stock.coroutine, {})

--- Passes what a coroutine yields or returns on to the one that resumed it. When it waits for the gateway, so does the
--- whole phase.
local function resumed(thread, ok, ...)
  leave()
  if ok and rawequal((...), pending) then
    local signal = co_yield(...)
    enter(thread)
    return resumed(thread, co_resume(thread, signal))
  end
  return ok, ...
end

function M.coroutine.resume(thread, ...)
  enter(thread)
  return resumed(thread, co_resume(thread, ...))
end

local function unwrapped(ok, ...)
  if ok then
    return ...
  end
  error((...), 0)
end

function M.coroutine.wrap(f)
  local thread = co_create(f)
  return function(...)
    enter(thread)
    return unwrapped(resumed(thread, co_resume(thread, ...)))
  end
end

local function left(...)
  leave()
  return ...
end

function M.coroutine.close(thread)
  enter(thread) -- its `<close>` variables have code
  return left(co_close(thread))
end

--- Runs a phase in a coroutine of its own.
function M.phase(f, ...)
  begin()
  return f(...)
end

M.pack, M.unpack = pack, unpack
return M
