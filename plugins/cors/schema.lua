--- schema.lua: the contract of cors.

return {
  summary = "Answers CORS preflights before authentication, and stamps the CORS headers on every response.",
  phases = { "on_request", "response_headers" },
  on_error = "reject",
  security = "untrusted-client",
  fields = {
    origins = {
      type = "list",
      inherit = "listen.origins",
      doc = "Pages that may read responses, with credentials. Absent: `listen.origins`; when that is absent too, every page, without credentials.",
    },
    credentials = {
      type = "boolean",
      default = true,
      doc = "Whether pages on the list of origins may send cookies. Without a list it has no effect: browsers forbid it.",
    },
    allow_methods = {
      type = "list",
      default = { "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS" },
      doc = "Methods that a preflight is granted.",
    },
    max_age = {
      type = "duration",
      default = "1h",
      doc = "How long a browser may keep the answer to a preflight.",
    },
  },
}
