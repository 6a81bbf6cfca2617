--- plugin.lua: admits a request only with a user name and its password (RFC 7617).

local base64 = require "streamgate.base64"
local cache = require "streamgate.cache"
local crypto = require "streamgate.crypto"
local hex = require "streamgate.hex"
local password = require "streamgate.password"

local M = {}

-- What remembers a verified pair is made with a key that never leaves this VM, so that it tells nothing about the pair.
local memory_key = crypto.random(32)

local LONGEST_USER = 256 -- bytes: the longest id of a principal
local LONGEST_PASSWORD = 1024 -- bytes

local function check_user(user)
  local is_wrong = user == "" or user == "-" or #user > LONGEST_USER or user:find "[:%c]" or not utf8.len(user)
  return not is_wrong
end

local function add(users, where, user, hash)
  if not check_user(user) then
    error(where .. ": not a user name: expected 1 to 256 bytes of UTF-8 without `:` and control characters", 0)
  end
  if users[user] then
    error(where .. ": this user is there twice", 0)
  end
  if not password.check_hash(hash) then
    error(where .. ": not a hash of bcrypt or argon2id; make one with `htpasswd -nB NAME`", 0)
  end
  users[user] = hash
end

--- Reads the lines `user:hash` of a file as htpasswd makes it. No message shows a line: it has a hash.
local function read_file(users, text)
  local number = 0
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    number = number + 1
    line = line:gsub("\r$", "")
    if not line:match "^%s*$" and not line:match "^%s*#" then
      local user, hash = line:match "^([^:]*):([^:%s]+)"
      if not user then
        error(("users_file: line %d: expected `user:hash`"):format(number), 0)
      end
      add(users, ("users_file: line %d"):format(number), user, hash)
    end
  end
end

function M.configure(conf, step)
  local users = {}
  for user, hash in pairs(conf.users) do
    add(users, "users", user, hash)
  end
  if conf.users_file then
    read_file(users, conf.users_file)
  end

  local names, fingerprints = {}, {}
  for user, hash in pairs(users) do
    names[#names + 1] = user
    fingerprints[user] = hex.encode(crypto.sha256(user .. "\0" .. hash)):sub(1, 16)
  end
  if #names == 0 then
    error("there are no users: give `users` or `users_file`", 0)
  end
  table.sort(names)

  return {
    users = users,
    fingerprints = fingerprints,
    decoy = users[names[1]],
    remember = conf.remember,
    slot = step.id,
    challenge = ('Basic realm="%s", charset="UTF-8"'):format((conf.realm:gsub('[\\"]', "\\%0"))),
  }
end

--- User and password of the request; nothing when it has none, or none that can be.
local function credentials(request)
  local header = request:header "authorization"
  local scheme, encoded = (header or ""):match "^(%a+) +(%S+)$"
  if not scheme or scheme:lower() ~= "basic" then
    return nil
  end
  local pair = base64.decode(encoded)
  local user, pass = (pair or ""):match "^([^:]*):(.*)$"
  if not user or pair:find "%c" then -- RFC 7617, section 2: neither has control characters
    return nil
  end
  return user, pass
end

--- Whether the password is the user's. Somebody who is not there costs as much as a wrong password: all is done as for
--- a user, with another's hash, and the answer is no whatever comes out.
local function is_right(user, pass, conf)
  if #user > LONGEST_USER or #pass > LONGEST_PASSWORD then
    return false
  end
  local is_known = conf.users[user] ~= nil
  local hash = conf.users[user] or conf.decoy
  if conf.remember <= 0 then
    return password.verify(pass, hash) and is_known
  end
  -- The hash is in the key, so a changed password is forgotten at once; lengths keep the three apart.
  local text = ("%d:%d:%s%s%s"):format(#user, #hash, user, hash, pass)
  local key = hex.encode(crypto.hmac_sha256(memory_key, text))
  local kept = cache.get(key, conf.remember, function()
    if password.verify(pass, hash) and is_known then
      return "1"
    end
    return nil, "wrong" -- a failure is not kept, or guesses would fill the memory
  end)
  return kept == "1"
end

--- @param request streamgate.Request
function M.authenticate(request, conf)
  local user, pass = credentials(request)
  if not user then
    return request:reject("auth.missing_password", { ["www-authenticate"] = conf.challenge })
  end
  if not is_right(user, pass, conf) then
    return request:reject("auth.wrong_password", { ["www-authenticate"] = conf.challenge })
  end
  request:set("principal", { id = user })
  request:set(conf.slot, conf.fingerprints[user])
end

--- Ends a session whose user was removed or has another password now.
--- @param request streamgate.Request
function M.session_tick(request, _, conf)
  local fingerprint = request:get(conf.slot)
  if not fingerprint then
    return -- it was another step that let the browser in
  end
  if conf.fingerprints[request:get("principal").id] ~= fingerprint then
    return request:reject "auth.changed_password"
  end
end

return M
