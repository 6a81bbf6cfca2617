--- plugin.lua: tells a receiver of webhooks what becomes of sessions.

local base64 = require "streamgate.base64"
local base64url = require "streamgate.base64url"
local crypto = require "streamgate.crypto"
local http = require "streamgate.http"
local json = require "streamgate.json"
local log = require "streamgate.log"
local metrics = require "streamgate.metrics"
local queue = require "streamgate.queue"
local time = require "streamgate.time"
local timer = require "streamgate.timer"
local uuid = require "streamgate.uuid"

local M = {}

local sent = metrics.counter("sent_total", "Events that the receiver took.")
local failed = metrics.counter("failed_total", "Messages that the receiver did not take, each attempt.", { "reason" })
local dropped = metrics.counter("dropped_total", "Events that were given up.", { "reason" })
local waiting = metrics.gauge("waiting", "Events that wait to be sent.")

--- The event of each phase.
local OPENED, PARKED, RESUMED, CLOSED = "session.opened", "session.parked", "session.resumed", "session.closed"
local KNOWN = { [OPENED] = true, [PARKED] = true, [RESUMED] = true, [CLOSED] = true }

--- Longest attribute that stands in an event, in bytes.
local LONGEST = 256
--- Most attributes that stand in an event: with these bounds a message is well below what JSON texts may be.
local MOST_ATTRIBUTES = 8
--- Longest time in which a round begins to send a message, in seconds: a timer that runs for minutes is stopped.
local ROUND = 60
--- Longer than a message takes, in seconds beyond the timeout: when a round was cut off, the next one waits for so long.
local GRACE = 5

--- Queues an event, when it is one of those that are wanted.
local function tell(kind, request, session, conf)
  if not conf.wanted[kind] then
    return
  end
  local principal = request:get "principal"
  local data = {
    session = session:id(),
    ["function"] = session:function_id(),
    route = request:route(),
    principal = principal and principal.id,
    client_ip = conf.client_ip and request:client_ip() or nil,
  }
  if kind ~= OPENED then
    data.cause = session:cause()
    data.age = session:age()
    data.received = session:received()
    data.sent = session:sent()
  end
  for _, name in ipairs(principal and conf.attributes or {}) do
    local value = principal[name]
    local is_short = type(value) == "string" and #value <= LONGEST
    if is_short or type(value) == "number" or type(value) == "boolean" then
      data.attributes = data.attributes or {}
      data.attributes[name] = value
    end
  end
  local event = { type = kind, timestamp = time.rfc3339(time.now()), data = data }
  if not queue.push(conf.events_queue, json.encode(event)) then
    dropped:add(1, "full")
  end
end

--- A message on its way stays in a queue of its own, so that neither a reload nor a lost VM loses it. Its first entry
--- says its id, how many events follow, how often it was tried, when it is due, and whether it is a list. Nothing waits
--- while the entries are taken or put, so no other script of this thread comes between.
local SHAPE = "s1 I4 I4 n B"

local function put(message, conf)
  local is_list = message.is_list and 1 or 0
  queue.push(conf.outgoing_queue, SHAPE:pack(message.id, #message.events, message.n_tried, message.due, is_list))
  for _, event in ipairs(message.events) do
    queue.push(conf.outgoing_queue, event)
  end
end

local function take(conf)
  local head = queue.pop(conf.outgoing_queue)[1]
  if not head then
    return nil
  end
  local id, n_events, n_tried, due, is_list = SHAPE:unpack(head)
  local events = queue.pop(conf.outgoing_queue, n_events)
  return { id = id, events = events, n_tried = n_tried, due = due, is_list = is_list == 1 }
end

--- The message to be sent next: the one that is on its way, or one made of the oldest events.
local function next_message(conf)
  local message = take(conf)
  if not message then
    local events = queue.pop(conf.events_queue, conf.batch)
    if #events == 0 then
      return nil
    end
    message = { id = "msg_" .. uuid.v7(), events = events, n_tried = 0, due = 0, is_list = conf.batch > 1 }
  end
  put(message, conf)
  return message
end

--- Takes a message out, or puts it back with what has changed.
local function settle(message, conf, is_over)
  local present = take(conf)
  if present and present.id ~= message.id then
    put(present, conf) -- another round was quicker
  elseif not is_over then
    put(message, conf)
  end
end

--- The signature of a message (Standard Webhooks).
local function signature(id, timestamp, body, conf)
  local content = id .. "." .. timestamp .. "." .. body
  local signatures = {}
  for idx, key in ipairs(conf.keys) do
    signatures[idx] = "v1," .. base64.encode(crypto.hmac_sha256(key, content))
  end
  return table.concat(signatures, " ")
end

--- How long to wait before the next attempt: twice as long each time, from half of it at random to all of it.
local function pause(n_tried, response, conf)
  local seconds = math.min(conf.backoff * 2 ^ math.min(n_tried - 1, 30), conf.backoff_max)
  local a, b = crypto.random(2):byte(1, 2)
  seconds = seconds * (0.5 + (a * 256 + b) / 65535 / 2)
  local asked = response and (response.headers["retry-after"] or ""):match "^%d+$"
  if asked then
    seconds = math.max(seconds, math.min(tonumber(asked), conf.backoff_max))
  end
  return seconds
end

--- Sends a message. Gives whether the next one may follow.
local function attempt(message, conf)
  local timestamp = ("%d"):format(time.now() // 1)
  local body = message.is_list and "[" .. table.concat(message.events, ",") .. "]" or message.events[1]
  local response, reason = http.post(conf.url, {
    headers = {
      ["content-type"] = "application/json",
      ["webhook-id"] = message.id,
      ["webhook-timestamp"] = timestamp,
      ["webhook-signature"] = signature(message.id, timestamp, body, conf),
    },
    body = body,
    timeout = conf.request_timeout,
  })
  local status = response and response.status
  if status and status >= 200 and status <= 299 then
    sent:add(#message.events)
    settle(message, conf, true)
    return true
  end
  message.n_tried = message.n_tried + 1
  failed:add(1, status and "status" or reason)
  local why = status and "status " .. status or reason
  if status == 410 or message.n_tried >= conf.attempts then -- 410: the receiver wants no more of it
    dropped:add(#message.events, status == 410 and "gone" or "attempts")
    log.error(("%d events were given up after %d attempts: %s"):format(#message.events, message.n_tried, why))
    settle(message, conf, true)
    return true
  end
  message.due = time.now() + pause(message.n_tried, response, conf)
  log.warn(("the receiver did not take a message, attempt %d: %s"):format(message.n_tried, why))
  settle(message, conf, false)
  return false
end

--- One round at a time: two steps of one chain, or an old and a new configuration, may have the same receiver.
local function begin(conf)
  local busy_until = tonumber(queue.pop(conf.lock_queue)[1])
  if busy_until and busy_until > time.now() then
    queue.push(conf.lock_queue, tostring(busy_until))
    return false
  end
  return true
end

local function deliver(conf)
  if not begin(conf) then
    return
  end
  local began = time.monotonic()
  while time.monotonic() - began <= ROUND do
    local message = next_message(conf)
    if not message or message.due > time.now() then
      break
    end
    queue.push(conf.lock_queue, tostring(time.now() + conf.request_timeout + GRACE))
    local may_follow = attempt(message, conf)
    queue.pop(conf.lock_queue)
    if not may_follow then
      break
    end
  end
  waiting:set(queue.size(conf.events_queue) + math.max(0, queue.size(conf.outgoing_queue) - 1))
end

--- The key in a secret of the form `whsec_BASE64`.
local function key_of(secret, name)
  local key = base64.decode(secret:match "^whsec_(.*)$" or "")
  if not key or #key < 24 or #key > 64 then
    error(name .. ": expected `whsec_` and 24 to 64 bytes in base64", 0) -- and never the secret itself
  end
  return key
end

function M.configure(conf)
  conf.wanted = {}
  for _, kind in ipairs(conf.events) do
    if not KNOWN[kind] then
      error(("events: there is no %s; there are %s, %s, %s, %s"):format(kind, OPENED, PARKED, RESUMED, CLOSED), 0)
    end
    conf.wanted[kind] = true
  end
  if #conf.attributes > MOST_ATTRIBUTES then
    error(("attributes: expected at most %d"):format(MOST_ATTRIBUTES), 0)
  end
  conf.keys = { key_of(conf.secret, "secret") }
  if conf.previous_secret then
    conf.keys[2] = key_of(conf.previous_secret, "previous_secret")
  end
  -- By receiver, so that all its events are in one order, and a change of another setting leaves them where they are.
  local receiver = base64url.encode(crypto.sha256(conf.url)):sub(1, 22)
  conf.events_queue, conf.outgoing_queue, conf.lock_queue =
    "events " .. receiver, "outgoing " .. receiver, "lock " .. receiver
  return conf
end

function M.init(conf)
  timer.every(conf.interval, function()
    deliver(conf)
  end, { once = true })
end

function M.session_open(request, session, conf)
  tell(OPENED, request, session, conf)
end

function M.session_park(request, session, conf)
  tell(PARKED, request, session, conf)
end

function M.session_resume(request, session, conf)
  tell(RESUMED, request, session, conf)
end

function M.session_end(request, session, conf)
  tell(CLOSED, request, session, conf)
end

return M
