--- spec.lua: what webhook-events promises.

local base64 = require "streamgate.base64"
local crypto = require "streamgate.crypto"
local json = require "streamgate.json"
local spec = require "streamgate.spec"

local url = "https://billing.example/hooks"
local key = "a key of thirty-two bytes, or so"
local secret = spec.file("whsec_" .. base64.encode(key))
local settings = { url = url, secret = secret, backoff = "10s", backoff_max = "1m" }

local function with(plugin, more)
  local all = {}
  for name, value in pairs(settings) do
    all[name] = value
  end
  for name, value in pairs(more) do
    all[name] = value
  end
  return plugin:with(all)
end

--- A receiver that answers all messages alike.
local function receiver(status, headers)
  spec.http(function()
    return { status = status, headers = headers or {}, body = "" }
  end)
end

local function away()
  spec.http(function()
    return nil, "timeout"
  end)
end

local function got()
  return spec.requests()
end

--- What happens to a session.
local function happens(plugin, phase, id, more)
  local run = { principal = { id = "ada" }, session = { id = id, function_id = "f1" } }
  for name, value in pairs(more or {}) do
    run[name] = value
  end
  return plugin:session(phase, run)
end

--- Moves the clock, and runs the timer.
local function round(plugin, at)
  if at then
    plugin:request { at = at }
  end
  plugin:timers()
end

local function events_of(request)
  local value = json.decode(request.body)
  return value.type and { value } or value
end

local function names(requests)
  local found = {}
  for _, request in ipairs(requests) do
    for _, event in ipairs(events_of(request)) do
      found[#found + 1] = event.data.session
    end
  end
  return table.concat(found, " ")
end

return spec.plugin("webhook-events", settings, function(it)
  it("tells of each session what becomes of it", function(plugin)
    receiver(204)
    happens(plugin, "session_open", "s1", { at = 1785542400 })
    happens(plugin, "session_park", "s1", {
      session = { id = "s1", function_id = "f1", cause = "lost", age = 2.5, received = 10, sent = 20 },
    })
    happens(plugin, "session_resume", "s1", {
      session = { id = "s1", function_id = "f1", cause = "reattach", age = 3, received = 10, sent = 20 },
    })
    happens(plugin, "session_end", "s1", {
      session = { id = "s1", function_id = "f1", cause = "closed", age = 4, received = 11, sent = 22 },
    })
    round(plugin)
    local requests = got()
    spec.equal(#requests, 4)
    spec.equal(json.decode(requests[1].body), {
      type = "session.opened",
      timestamp = "2026-08-01T00:00:00Z",
      data = { session = "s1", ["function"] = "f1", route = "/**", principal = "ada" },
    })
    local parked = json.decode(requests[2].body)
    spec.equal(parked.type, "session.parked")
    spec.equal(parked.data.cause, "lost")
    spec.equal(parked.data.age, 2.5)
    spec.equal(parked.data.received, 10)
    spec.equal(parked.data.sent, 20)
    spec.equal(json.decode(requests[3].body).type, "session.resumed")
    spec.equal(json.decode(requests[3].body).data.cause, "reattach")
    spec.equal(json.decode(requests[4].body).type, "session.closed")
    spec.equal(json.decode(requests[4].body).data.sent, 22)
  end)

  it("signs what it sends, as Standard Webhooks has it", function(plugin)
    receiver(200)
    happens(plugin, "session_open", "s1", { at = 1785542400.7 })
    round(plugin)
    local request = got()[1]
    spec.equal(request.method, "POST")
    spec.equal(request.url, url)
    spec.equal(request.headers["content-type"], "application/json")
    spec.equal(request.headers["webhook-timestamp"], "1785542400")
    local id = request.headers["webhook-id"]
    spec.equal(id:find "^msg_%x+%-" ~= nil, true, "the id is one")
    local mac = crypto.hmac_sha256(key, id .. ".1785542400." .. request.body)
    spec.equal(request.headers["webhook-signature"], "v1," .. base64.encode(mac))
  end)

  it("signs with two secrets while one takes the place of the other", function(plugin)
    receiver(200)
    local other = ("\0\255"):rep(12)
    local changing = with(plugin, { previous_secret = spec.file("whsec_" .. base64.encode(other)) })
    happens(changing, "session_open", "s1", { at = 1000 })
    round(changing)
    local request = got()[1]
    local content = request.headers["webhook-id"] .. ".1000." .. request.body
    spec.equal(
      request.headers["webhook-signature"],
      ("v1,%s v1,%s"):format(
        base64.encode(crypto.hmac_sha256(key, content)),
        base64.encode(crypto.hmac_sha256(other, content))
      )
    )
  end)

  it("sends nothing when nothing has happened", function(plugin)
    receiver(200)
    round(plugin)
    spec.equal(#got(), 0)
  end)

  it("gives each message an id of its own", function(plugin)
    receiver(200)
    happens(plugin, "session_open", "s1")
    happens(plugin, "session_open", "s2")
    round(plugin)
    local requests = got()
    spec.equal(requests[1].headers["webhook-id"] ~= requests[2].headers["webhook-id"], true)
  end)

  it("sends the events that it was told to, and no others", function(plugin)
    receiver(200)
    local some = with(plugin, { events = { "session.closed" } })
    happens(some, "session_open", "s1")
    happens(some, "session_park", "s1")
    happens(some, "session_resume", "s1")
    happens(some, "session_end", "s1")
    round(some)
    spec.equal(#got(), 1)
    spec.equal(json.decode(got()[1].body).type, "session.closed")
  end)

  it("says nothing that it was not told to say", function(plugin)
    receiver(200)
    local principal = { id = "ada", tenant = "blue", email = "ada@example.com", functions = { "f1" } }
    local set = { ["bearer-auth"] = "secret-key", token = "s3cret" }
    happens(plugin, "session_open", "s1", { principal = principal, set = set })
    round(plugin)
    local body = got()[1].body
    for _, word in ipairs { "blue", "ada@example.com", "secret", "s3cret", "127.0.0.1" } do
      spec.equal(body:find(word, 1, true), nil, word)
    end
  end)

  it("names attributes and address when it is told to", function(plugin)
    receiver(200)
    local curious = with(plugin, {
      attributes = { "tenant", "level", "admin", "groups", "essay", "missing" },
      client_ip = true,
    })
    local principal =
      { id = "ada", tenant = "blue", level = 3, admin = false, groups = { "a" }, essay = ("x"):rep(257), email = "e" }
    happens(curious, "session_open", "s1", { principal = principal })
    happens(curious, "session_open", "s2", { principal = false })
    round(curious)
    local data = json.decode(got()[1].body).data
    spec.equal(data.attributes, { tenant = "blue", level = 3, admin = false })
    spec.equal(data.client_ip, "127.0.0.1")
    data = json.decode(got()[2].body).data
    spec.equal(data.attributes, nil)
    spec.equal(data.principal, nil)
  end)

  it("takes names of any kind", function(plugin)
    receiver(200)
    local id = ('"\\</é\u{1f600}'):rep(20)
    happens(plugin, "session_open", "s1", { principal = { id = id } })
    round(plugin)
    spec.equal(json.decode(got()[1].body).data.principal, id)
  end)

  it("sends many events in one message when it is told to", function(plugin)
    receiver(200)
    local batches = with(plugin, { batch = 3 })
    for idx = 1, 4 do
      happens(batches, "session_open", "s" .. idx)
    end
    round(batches)
    spec.equal(#got(), 2)
    spec.equal(#json.decode(got()[1].body), 3)
    spec.equal(#json.decode(got()[2].body), 1)
    spec.equal(names(got()), "s1 s2 s3 s4")
  end)

  it("keeps the order, and tries the same message again", function(plugin)
    away()
    happens(plugin, "session_open", "s1", { at = 1000 })
    happens(plugin, "session_open", "s2")
    round(plugin)
    spec.equal(#got(), 1)
    spec.equal(names(got()), "s1")
    local id, body = got()[1].headers["webhook-id"], got()[1].body
    receiver(200)
    round(plugin, 1004)
    spec.equal(#got(), 0, "it waits for at least half of the backoff")
    happens(plugin, "session_open", "s3")
    round(plugin, 1011)
    spec.equal(names(got()), "s1 s2 s3")
    spec.equal(got()[1].headers["webhook-id"], id)
    spec.equal(got()[1].headers["webhook-timestamp"], "1011")
    spec.equal(got()[1].body, body)
    round(plugin)
    spec.equal(#got(), 3)
  end)

  it("waits longer each time, and not for ever", function(plugin)
    receiver(500)
    happens(plugin, "session_open", "s1", { at = 1000 })
    round(plugin)
    local at = 1000
    for idx, longest in ipairs { 10, 20, 40, 60, 60 } do
      round(plugin, at + longest / 2 - 0.5)
      spec.equal(#got(), idx, "before the shortest pause is over")
      at = at + longest + 0.5
      round(plugin, at)
      spec.equal(#got(), idx + 1, "after the longest pause")
    end
  end)

  it("gives up after so many attempts, and goes on with the next", function(plugin)
    local patient = with(plugin, { attempts = 3 })
    away()
    happens(patient, "session_open", "s1", { at = 1000 })
    happens(patient, "session_open", "s2")
    round(patient)
    round(patient, 1100)
    spec.equal(names(got()), "s1 s1")
    round(patient, 1200)
    spec.equal(names(got()), "s1 s1 s1 s2")
    receiver(200)
    round(patient, 1300)
    spec.equal(names(got()), "s2")
  end)

  it("takes a redirect and any other answer for a no", function(plugin)
    for idx, status in ipairs { 301, 302, 400, 401, 404, 429, 500, 503 } do
      receiver(status)
      local other = with(plugin, { url = url .. idx })
      happens(other, "session_open", "s1", { at = 1000 * idx })
      round(other)
      spec.equal(#got(), 1)
      round(other, 1000 * idx + 11)
      spec.equal(#got(), 2)
    end
  end)

  it("sends no more of a message when the receiver is gone", function(plugin)
    receiver(410)
    happens(plugin, "session_open", "s1", { at = 1000 })
    round(plugin)
    receiver(200)
    round(plugin, 2000)
    spec.equal(#got(), 0)
  end)

  it("waits as long as the receiver asks, within bounds", function(plugin)
    receiver(429, { ["retry-after"] = "45" })
    happens(plugin, "session_open", "s1", { at = 1000 })
    round(plugin)
    round(plugin, 1044)
    spec.equal(#got(), 1)
    receiver(503, { ["retry-after"] = "99999999999999999999" })
    round(plugin, 1046)
    spec.equal(#got(), 1)
    round(plugin, 1105)
    spec.equal(#got(), 1)
    receiver(200)
    round(plugin, 1107)
    spec.equal(#got(), 1)
  end)

  it("takes no nonsense for a time to wait", function(plugin)
    for idx, value in ipairs { "soon", "-5", "1e9", "Fri, 31 Dec 2027 23:59:59 GMT", "" } do
      receiver(503, { ["retry-after"] = value })
      local other = with(plugin, { url = url .. idx })
      happens(other, "session_open", "s1", { at = 1000 * idx })
      round(other)
      round(other, 1000 * idx + 11)
      spec.equal(#got(), 2)
    end
  end)

  it("keeps the events of a receiver apart from those of another", function(plugin)
    receiver(200)
    local other = with(plugin, { url = "https://other.example/" })
    happens(plugin, "session_open", "s1")
    happens(other, "session_open", "s2")
    round(other)
    spec.equal(#got(), 1)
    spec.equal(got()[1].url, "https://other.example/")
    spec.equal(names(got()), "s2")
  end)

  it("keeps what could not be sent when its settings change", function(plugin)
    away()
    happens(plugin, "session_open", "s1", { at = 1000 })
    round(plugin)
    receiver(200)
    round(with(plugin, { batch = 10, attempts = 2 }), 1011)
    spec.equal(names(got()), "s1")
  end)

  it("drops what is too much, and keeps what came first", function(plugin)
    receiver(200)
    for idx = 1, 1005 do
      happens(plugin, "session_open", "s" .. idx)
    end
    local batches = with(plugin, { batch = 50 })
    for _ = 1, 3 do
      round(batches)
    end
    local n_events = 0
    for _, request in ipairs(got()) do
      n_events = n_events + #events_of(request)
    end
    spec.equal(n_events, 1000)
    spec.equal(events_of(got()[1])[1].data.session, "s1")
  end)

  it("refuses settings that make no sense, without showing a secret", function()
    local function refused(more, message)
      local all = { url = url, secret = secret }
      for name, value in pairs(more) do
        all[name] = value
      end
      spec.refused(all, message)
    end
    spec.refused({ secret = secret }, "url")
    spec.refused({ url = url }, "secret")
    refused({ secret = spec.file "whsec_c2hvcnQ=" }, "secret: expected `whsec_`")
    refused({ secret = spec.file(base64.encode(key)) }, "secret: expected `whsec_`")
    refused({ secret = spec.file "whsec_***************************************" }, "secret: expected `whsec_`")
    refused({ secret = spec.file("whsec_" .. base64.encode(("x"):rep(65))) }, "secret: expected `whsec_`")
    refused({ previous_secret = spec.file "short" }, "previous_secret: expected `whsec_`")
    refused({ events = { "session.eaten" } }, "events: there is no session.eaten")
    refused({ batch = 0 }, "batch")
    refused({ attempts = 0 }, "attempts")
    refused({ attributes = { "a", "b", "c", "d", "e", "f", "g", "h", "i" } }, "attributes: expected at most 8")
  end)
end)
