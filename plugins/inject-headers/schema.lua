--- schema.lua: the contract of inject-headers.

return {
  summary = "Sets and removes headers of the request that goes upstream.",
  phases = { "upstream_request" },
  on_error = "reject",
  security = "untrusted-client",
  fields = {
    set = {
      type = "map",
      default = {},
      doc = "Headers to set, in place of what the browser sent. Values may have placeholders: `{principal.id}`, `{principal.ATTRIBUTE}`, `{request.id}`, `{request.method}`, `{request.path}`, `{request.host}`, `{client.ip}`. A header with a placeholder that has no value is not sent.",
    },
    remove = {
      type = "list",
      default = {},
      doc = "Headers to take out.",
    },
  },
}
