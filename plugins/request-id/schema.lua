--- schema.lua: the contract of request-id.

return {
  summary = "Gives each request an id that goes upstream and back to the browser.",
  phases = { "on_request", "upstream_request", "response_headers" },
  on_error = "reject",
  security = "untrusted-client", -- hardened against anything a browser can send
  fields = {
    header = {
      type = "header",
      default = "x-request-id",
      doc = "Header that has the id, of the request as of the response.",
    },
    accept = {
      type = "boolean",
      default = false,
      doc = "Whether an id that comes with the request is taken. Only for a gateway behind a proxy that sets it.",
    },
    longest = {
      type = "integer",
      default = 64,
      min = 1,
      max = 256,
      doc = "Most characters of an id that comes with the request; a longer one is replaced.",
    },
    make = {
      type = "string",
      choices = { "gateway", "uuid-v4", "uuid-v7" },
      default = "gateway",
      doc = "What a new id is: the one that the gateway's log and error bodies have, or a UUID of its own.",
    },
    upstream = {
      type = "boolean",
      default = true,
      doc = "Whether the id goes upstream. The header that the browser sent never does, unless it was taken.",
    },
    response = {
      type = "boolean",
      default = true,
      doc = "Whether the id goes to the browser.",
    },
  },
}
