--- schema.lua: the contract of forward-auth.

return {
  summary = "Asks an authorization service about each request, and believes what it says about who is asking.",
  phases = { "authenticate", "upstream_request" },
  on_error = "reject",
  security = "untrusted-client",
  fields = {
    url = {
      type = "url",
      required = true,
      doc = "Where the service is asked, with GET.",
    },
    send_headers = {
      type = "list",
      of = "header",
      default = { "authorization", "cookie" },
      doc = "Headers of the browser that the service gets. A bearer token in `Sec-WebSocket-Protocol` is sent as `authorization`.",
    },
    send_query = {
      type = "boolean",
      default = false,
      doc = "Whether `X-Forwarded-Uri` has the query.",
    },
    principal_header = {
      type = "header",
      default = "remote-user",
      doc = "Header of the answer with the principal's id.",
    },
    anonymous = {
      type = "boolean",
      default = false,
      doc = "Whether an answer without `principal_header` lets the browser in, without a principal. If not, the answer counts as none.",
    },
    attributes = {
      type = "map",
      of = "header",
      default = {},
      doc = "Attributes of the principal, each with the header of the answer that has it. `functions` is a list with commas, of the functions that the principal may use.",
    },
    upstream_headers = {
      type = "list",
      of = "header",
      default = {},
      doc = "Headers of the answer that go upstream, in place of the browser's own of the same names.",
    },
    cache = {
      type = "duration",
      min = 1,
      max = 3600,
      doc = "How long the answer to the same question is kept. Absent: the service is asked each time.",
    },
    request_timeout = {
      type = "duration",
      default = "5s",
      min = 0.1,
      max = 60,
      doc = "How long the service may take.",
    },
    on_unavailable = {
      type = "string",
      choices = { "reject", "allow" },
      default = "reject",
      doc = 'What becomes of a request when the service gives no answer that can be used. `"allow"` lets everybody in then, without a principal.',
    },
  },
  rejections = {
    ["auth.refused"] = { status = 401, message = "You must sign in to use this service." },
    ["auth.unavailable"] = { status = 503, message = "Who you are cannot be checked at the moment. Try again." },
  },
}
