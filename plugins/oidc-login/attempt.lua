--- attempt.lua: sign-ins that are under way, each in a sealed cookie of its own.
---
--- The cookie's name has the beginning of the `state`, so tabs that sign in at the same time do not take each other's.

local base64url = require "streamgate.base64url"
local cookie = require "streamgate.cookie"
local crypto = require "streamgate.crypto"
local json = require "streamgate.json"
local kv = require "streamgate.kv"
local time = require "streamgate.time"

local M = {}

-- Every tab that somebody opens without a session begins one; a request head has room for these and more.
local MOST = 5

-- How many cookies are looked at: what else calls itself like that was not set here.
local MOST_SEEN = 16

-- The part of the state that is in the cookie's name.
local NAME_LENGTH = 8

-- 24 random bytes, in base64url.
local STATE_LENGTH = 32

-- An attempt has a path of at most 1 KiB, which JSON may double, and some 200 bytes besides; sealing adds a third.
local LONGEST_VALUE = 3500

local function random(n)
  return base64url.encode(crypto.random(n))
end

local function format(conf, name, value, max_age)
  return cookie.format(name, value, {
    path = "/", -- what the prefix __Host- asks for
    max_age = max_age,
    secure = conf.is_secure,
    http_only = true,
    same_site = "Lax", -- the provider's redirect comes from another site
  })
end

local function open(conf, value)
  if #value > LONGEST_VALUE then
    return nil
  end
  local text = crypto.open(conf.attempt_key, value)
  return text and json.decode(text) or nil
end

--- The cookies that take away the oldest attempts of this browser, so that a new one has room.
local function make_room(request, conf)
  local seen = {}
  for name, value in (request:header "cookie" or ""):gmatch "([^=;%s]+)=([^;%s]*)" do
    local is_ours = name:sub(1, #conf.attempt_prefix) == conf.attempt_prefix
      and name:sub(#conf.attempt_prefix + 1):find "^[%w_%-]+$"
      and #name == #conf.attempt_prefix + NAME_LENGTH
    if is_ours and #seen < MOST_SEEN then
      local attempt = open(conf, value)
      seen[#seen + 1] = { name = name, ends = attempt and attempt.ends or 0 }
    end
  end
  table.sort(seen, function(a, b)
    return a.ends < b.ends
  end)
  local cookies = {}
  for idx = 1, math.min(#seen - (MOST - 1), MOST) do
    cookies[idx] = format(conf, seen[idx].name, "", 0)
  end
  return cookies
end

--- A new attempt, and the cookies to set for it.
function M.begin(request, conf, back_to)
  local attempt = {
    state = random(24),
    nonce = random(24),
    verifier = random(32), -- 43 characters, the least that RFC 7636 section 4.1 allows
    back_to = back_to,
    ends = time.now() + conf.login_window,
  }
  local cookies = make_room(request, conf)
  local name = conf.attempt_prefix .. attempt.state:sub(1, NAME_LENGTH)
  local sealed = crypto.seal(conf.attempt_key, json.encode(attempt))
  cookies[#cookies + 1] = format(conf, name, sealed, conf.login_window)
  return attempt, cookies
end

--- The attempt that a browser comes back from, and the cookie that takes it away; nil when it was not begun in this
--- browser, or has taken too long.
function M.find(request, conf)
  local state = request:parameter "state"
  if not state or #state ~= STATE_LENGTH or state:find "[^%w_%-]" then
    return nil
  end
  local name = conf.attempt_prefix .. state:sub(1, NAME_LENGTH)
  local value = request:cookie(name)
  local attempt = value and open(conf, value)
  if not attempt or not crypto.equal(attempt.state, state) or attempt.ends <= time.now() then
    return nil
  end
  return attempt, format(conf, name, "", 0)
end

--- Whether an attempt was not used before. Without the store this rests on the provider, whose codes are good once.
function M.use(conf, attempt)
  return kv.add("used/" .. attempt.state, "1", conf.login_window) ~= false
end

return M
