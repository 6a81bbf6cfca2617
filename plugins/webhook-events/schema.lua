--- schema.lua: the contract of webhook-events.

return {
  summary = "Tells a receiver of webhooks when sessions are opened, parked, resumed and closed.",
  phases = { "init", "session_open", "session_park", "session_resume", "session_end" },
  on_error = "skip", -- a session does not depend on who is told of it
  security = "untrusted-client",
  fields = {
    url = {
      type = "url",
      required = true,
      doc = "The receiver, which gets a POST.",
    },
    secret = {
      type = "secret",
      required = true,
      doc = "What messages are signed with: `whsec_` and 24 to 64 bytes in base64.",
    },
    previous_secret = {
      type = "secret",
      doc = "A second one, for the time in which the receiver changes from one to the other.",
    },
    events = {
      type = "list",
      default = { "session.opened", "session.parked", "session.resumed", "session.closed" },
      doc = "Which events are sent.",
    },
    attributes = {
      type = "list",
      default = {},
      doc = "Attributes of the principal that stand in an event, at most 8. Texts longer than 256 bytes are left out.",
    },
    client_ip = {
      type = "boolean",
      default = false,
      doc = "Whether the browser's address stands in an event.",
    },
    batch = {
      type = "integer",
      default = 1,
      min = 1,
      max = 50,
      doc = "Most events of one message. 1: a message is an event; otherwise it is a list of events.",
    },
    interval = {
      type = "duration",
      default = "1s",
      min = 0.1,
      max = 3600,
      doc = "How long to wait between two rounds of sending.",
    },
    attempts = {
      type = "integer",
      default = 20,
      min = 1,
      max = 100,
      doc = "How often a message is tried before it is given up.",
    },
    backoff = {
      type = "duration",
      default = "1s",
      min = 0.1,
      max = 3600,
      doc = "How long to wait after the first failure; it doubles with each further one.",
    },
    backoff_max = {
      type = "duration",
      default = "5m",
      min = 0.1,
      max = 86400,
      doc = "How long to wait at most.",
    },
    request_timeout = {
      type = "duration",
      default = "10s",
      min = 0.1,
      max = 60,
      doc = "How long the receiver may take.",
    },
  },
}
