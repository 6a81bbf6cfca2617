--- schema.lua: the contract of rate-limit.

return {
  summary = "Refuses requests that come faster than a limit, by address, principal, header or route.",
  phases = { "authenticate", "authorize", "response_headers" },
  authenticates = false, -- it counts before others find out who is asking
  on_error = "reject",
  security = "untrusted-client",
  fields = {
    by = {
      type = "string",
      choices = { "ip", "principal", "header", "route" },
      default = "ip",
      doc = "What is counted: the requests of an address, of a principal, with the same value of a header, or of the route as a whole. Requests without a principal or without the header are counted by their address.",
    },
    header = {
      type = "header",
      doc = 'The header, when `by` is `"header"`.',
    },
    rate = {
      type = "integer",
      required = true,
      min = 1,
      max = 1000000,
      doc = "How many requests there may be in the time of `per`.",
    },
    per = {
      type = "duration",
      default = "1m",
      min = 1,
      max = 86400,
      doc = "The time that `rate` is for.",
    },
    burst = {
      type = "integer",
      min = 1,
      max = 1000000,
      doc = "How many requests may come at once. Absent: as many as `rate`.",
    },
    phase = {
      type = "string",
      choices = { "authenticate", "authorize" },
      doc = 'When it is asked: `"authenticate"`, at its place in the chain among the plugins that authenticate, or `"authorize"`, after them all. Absent: `"authenticate"` for `by = "ip"`, else `"authorize"`.',
    },
    name = {
      type = "string",
      default = "default",
      doc = "Limits of the same name and the same numbers count together, also those of other routes. It stands in the headers.",
    },
    headers = {
      type = "string",
      choices = { "draft", "x", "none" },
      default = "draft",
      doc = 'How a browser is told what is left: `RateLimit-Policy` and `RateLimit`, `X-RateLimit-Limit` and its like, or not at all.',
    },
    exempt = {
      type = "list",
      of = "cidr",
      default = {},
      doc = "Addresses and networks that are not counted.",
    },
    ipv6_prefix = {
      type = "integer",
      default = 64,
      min = 16,
      max = 128,
      doc = "How many bits of an IPv6 address are one address in the eyes of the limit.",
    },
    on_unavailable = {
      type = "string",
      choices = { "allow", "reject" },
      default = "allow",
      doc = "What becomes of a request when the store of `plugins.store` does not answer.",
    },
  },
  rejections = {
    ["rate.exceeded"] = { status = 429, message = "There were too many requests. Try again in a moment." },
    ["rate.unavailable"] = { status = 503, message = "The gateway cannot count requests at the moment. Try again." },
  },
}
