--- schema.lua: the contract of bearer-auth.

return {
  summary = "Admits requests that carry a known bearer token.",
  phases = { "authenticate", "session_tick" },
  on_error = "reject",
  security = "untrusted-client", -- hardened against anything a browser can send
  fields = {
    tokens = {
      type = "token-file",
      required = true,
      doc = "TOML file, as `file:PATH`: a table per principal, with its `token` and attributes.",
    },
    realm = {
      type = "string",
      default = "streamgate",
      doc = "Realm named in the `WWW-Authenticate` challenge.",
    },
  },
}
