--- schema.lua: the contract of key-auth.

return {
  summary = "Admits requests that carry a known API key.",
  phases = { "authenticate", "upstream_request", "session_tick" },
  on_error = "reject",
  security = "untrusted-client", -- hardened against anything a browser can send
  fields = {
    keys = {
      type = "token-file",
      required = true,
      doc = "TOML file, as `file:PATH`: a table per principal, with its key as `token` or `token_sha256`, and attributes.",
    },
    from = {
      type = "list",
      default = { "header:x-api-key" },
      doc = "Where the key is looked for, in this order: `header:NAME`, `cookie:NAME`, `query:NAME`, `subprotocol` for the entries `authorization-bearer.KEY` and `authorization.KEY`, or `bearer` for `Authorization: Bearer KEY`, else those entries. The first place that has one counts.",
    },
    realm = {
      type = "string",
      default = "streamgate",
      doc = "Realm named in the `WWW-Authenticate` challenge.",
    },
  },
  rejections = {
    ["auth.missing_key"] = { status = 401, message = "This endpoint needs an API key." },
    ["auth.unknown_key"] = { status = 401, message = "The API key is not known here." },
    ["auth.expired_key"] = { status = 401, message = "The API key is not good any more." },
  },
}
