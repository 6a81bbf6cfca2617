--- schema.lua: the contract of introspection-auth.

return {
  summary = "Admits requests whose token an authorization server calls active (RFC 7662).",
  phases = { "authenticate", "session_tick" },
  on_error = "reject",
  security = "untrusted-client",
  fields = {
    url = {
      type = "url",
      required = true,
      doc = "The server's introspection endpoint.",
    },
    client_id = {
      type = "string",
      required = true,
      doc = "As whom the gateway asks.",
    },
    client_secret = {
      type = "secret",
      required = true,
      doc = "The secret of that client.",
    },
    client_auth = {
      type = "string",
      choices = { "basic", "post" },
      default = "basic",
      doc = "Where they are put: in `Authorization`, or in the form.",
    },
    cookie = {
      type = "string",
      doc = "A cookie with the token, read when it is nowhere else. Absent: none is read.",
    },
    principal = {
      type = "string",
      default = "sub",
      doc = "Claim with the principal's id, such as `sub`, `username` or `client_id`.",
    },
    attributes = {
      type = "list",
      default = { "username", "client_id" },
      doc = "Claims that become attributes of the principal.",
    },
    functions_claim = {
      type = "string",
      doc = "Claim with the ids of the functions that the principal may use, a list or a text with spaces; without it in an answer it may use none. Absent: those of the configuration.",
    },
    issuer = {
      type = "string",
      doc = "What `iss` must be. Absent: it is not looked at.",
    },
    audience = {
      type = "list",
      default = {},
      doc = "One of them must be in `aud`. Empty: it is not looked at.",
    },
    scopes = {
      type = "list",
      default = {},
      doc = "All of them must be in `scope`.",
    },
    leeway = {
      type = "duration",
      default = "30s",
      max = 600,
      doc = "How far the clocks of server and gateway may be apart.",
    },
    cache = {
      type = "duration",
      default = "1m",
      min = 1,
      max = 3600,
      doc = "How long an active token is believed to be, at most until its `exp`.",
    },
    cache_inactive = {
      type = "duration",
      default = "5s",
      min = 1,
      max = 600,
      doc = "How long an inactive token is believed to be.",
    },
    request_timeout = {
      type = "duration",
      default = "5s",
      min = 0.1,
      max = 60,
      doc = "How long the server may take.",
    },
    realm = {
      type = "string",
      default = "streamgate",
      doc = "Realm named in the `WWW-Authenticate` challenge.",
    },
  },
  rejections = {
    ["auth.insufficient_scope"] = { status = 403, message = "The token does not have the scope that is needed here." },
    ["auth.unavailable"] = { status = 503, message = "Who you are cannot be checked at the moment. Try again." },
  },
}
