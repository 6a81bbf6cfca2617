--- schema.lua: the contract of access-log.

return {
  summary = "Writes a line of chosen fields for each request and each session into the gateway's log.",
  phases = { "on_request", "log", "session_end" },
  on_error = "skip", -- a line that cannot be written is no reason to refuse a request
  security = "untrusted-client", -- hardened against anything a browser can send
  fields = {
    fields = {
      type = "list",
      default = {
        "request", "client_ip", "method", "path", "route", "principal", "function", "session", "status", "code", "took",
        "cause", "age", "received", "sent",
      },
      doc = "What stands in a line, in this order: `time`, `request`, `client_ip`, `method`, `path`, `query`, `route`, `tls`, `websocket`, `principal`, `function`, `session`, `status`, `code`, `took`, `cause`, `age`, `received`, `sent`, `principal.ATTRIBUTE`, `set.NAME`, `header.NAME`, `response.NAME`, `parameter.NAME`.",
    },
    lines = {
      type = "string",
      choices = { "both", "requests", "sessions" },
      default = "both",
      doc = "What gets a line.",
    },
    format = {
      type = "string",
      choices = { "text", "json" },
      default = "text",
      doc = "`name=value` in the order of `fields`, or a JSON object.",
    },
    sample = {
      type = "number",
      default = 1,
      min = 0,
      max = 1,
      doc = "Part of the requests that get a line; `0.1` is one of ten. A request and its session have both lines or none.",
    },
    failures = {
      type = "boolean",
      default = true,
      doc = "Whether each request that failed, with a code or a status from 400 on, gets a line whatever `sample` says.",
    },
  },
}
