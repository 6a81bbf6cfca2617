--- plugin.lua: says which functions a principal may use, and refuses all others.

local M = {}

local ANY = "*" -- in place of a function's id: whatever the configuration and the plugins choose

local function set_of(ids)
  local set = {}
  for _, id in ipairs(ids) do
    set[id] = true
  end
  return set
end

local function sets_of(lists)
  local sets = {}
  for name, ids in pairs(lists) do
    sets[name] = set_of(ids)
  end
  return sets
end

function M.configure(conf)
  if not next(conf.principals) and not next(conf.groups) and #conf.everybody == 0 then
    error("nobody may use anything: give `principals`, `groups` or `everybody`", 0)
  end
  return {
    principals = sets_of(conf.principals),
    groups = sets_of(conf.groups),
    everybody = set_of(conf.everybody),
    attribute = conf.attribute,
  }
end

local function add_all(granted, set)
  for id in pairs(set or {}) do
    granted[id] = true
  end
end

--- What the lists grant a principal: a set of ids, which may have `*`.
local function grants(principal, conf)
  local granted = {}
  add_all(granted, conf.everybody)
  add_all(granted, conf.principals[principal.id])
  local groups = principal[conf.attribute]
  for _, group in ipairs(type(groups) == "table" and groups or { groups }) do
    if type(group) == "string" or math.type(group) == "integer" then
      add_all(granted, conf.groups[tostring(group)])
    end
  end
  return granted
end

local function contains(list, item)
  for _, it in ipairs(list) do
    if it == item then
      return true
    end
  end
  return false
end

--- Whether the principal may use a function, by the lists and by its own `functions`.
local function may_use(principal, id, conf)
  local granted = grants(principal, conf)
  return (granted[ANY] or granted[id] or false) and (not principal.functions or contains(principal.functions, id))
end

--- Refuses a function that a plugin chose. Until one has, there is nothing to refuse: what the browser or the
--- configuration chooses is held against the principal's `functions` by the gateway.
local function check_choice(request, conf)
  local id = request:get "function_id"
  local principal = request:get "principal"
  if id and not (principal and may_use(principal, id, conf)) then
    return request:reject "function.forbidden"
  end
end

--- Bounds the principal to what it is granted, so that the gateway lets it choose nothing else.
--- @param request streamgate.Request
function M.authorize(request, conf)
  local principal = request:get "principal"
  if not principal then
    return request:reject "auth.forbidden" -- nobody was authenticated, so nothing is granted
  end
  local granted = grants(principal, conf)
  if not next(granted) then
    return request:reject "auth.forbidden"
  end
  if not granted[ANY] then
    local functions = {}
    for id in pairs(granted) do
      if not principal.functions or contains(principal.functions, id) then
        functions[#functions + 1] = id
      end
    end
    if #functions == 0 then
      return request:reject "function.forbidden"
    end
    table.sort(functions)
    principal.functions = functions
    request:set("principal", principal)
  end
  return check_choice(request, conf)
end

--- A plugin that chooses the function is the operator's word, which the gateway does not question. This does.
function M.select(request, conf)
  return check_choice(request, conf)
end

--- For a plugin that chooses after this one, or as late as here.
function M.upstream_request(request, _, conf)
  return check_choice(request, conf)
end

--- Ends a session whose function is not granted any more.
function M.session_tick(request, session, conf)
  local principal = request:get "principal"
  if not (principal and may_use(principal, session:function_id(), conf)) then
    return request:reject "function.forbidden"
  end
end

return M
