--- schema.lua: the contract of function-router.

return {
  summary = "Chooses the function by the path, a header, the query, an offered subprotocol or who is asking.",
  phases = { "select" },
  on_error = "reject",
  security = "untrusted-client", -- hardened against anything a browser can send
  fields = {
    rules = {
      type = "list",
      of = "map",
      required = true,
      doc = "Rules, of which the first that fits decides. Conditions, of which all must hold: `path` (a pattern as in routes), `subprotocol` (`name`, `key.value` or `key.*`), and `header`, `query`, `principal` (`name` or `name=value`). What is chosen: `function`, an id, and perhaps its `version`.",
    },
    otherwise = {
      type = "string",
      choices = { "continue", "reject" },
      default = "continue",
      doc = "What becomes of a request that no rule fits: the gateway chooses the function as without this plugin, or the request is refused.",
    },
  },
  rejections = {
    ["function.unrouted"] = { status = 404, message = "No function is served for this request." },
  },
}
