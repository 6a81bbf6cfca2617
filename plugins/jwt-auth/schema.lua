--- schema.lua: the contract of jwt-auth.

return {
  summary = "Admits requests that carry a JSON Web Token which an issuer has signed for this gateway.",
  phases = { "authenticate", "upstream_request", "session_tick" },
  on_error = "reject",
  security = "untrusted-client", -- hardened against anything a browser can send
  fields = {
    discover = {
      type = "url",
      doc = "Issuer, as a URL, whose OpenID discovery document says where its keys are. Its name is the issuer that tokens must have, unless `issuer` says otherwise.",
    },
    jwks_url = {
      type = "url",
      doc = "URL of the issuer's keys, a JWK Set, where there is no discovery document.",
    },
    keys = {
      type = "secret",
      doc = "The issuer's public keys, as `file:PATH`: a JWK Set, or a key in PEM.",
    },
    secret = {
      type = "secret",
      doc = "Secret shared with the issuer, for HS256, HS384 and HS512; at least 32 bytes.",
    },
    algorithms = {
      type = "list",
      doc = "Algorithms that a token may be signed with. Absent: all that go with the kind of key.",
    },
    issuer = {
      type = "list",
      doc = "Issuers (`iss`) whose tokens are taken.",
    },
    audience = {
      type = "list",
      required = true,
      doc = 'Audiences (`aud`) of which a token must have one: what the issuer calls this gateway. `["*"]` takes tokens for anybody, which lets in whoever has one for another service.',
    },
    token_type = {
      type = "string",
      doc = "Type (`typ`) that a token's header must have, such as `at+jwt` for access tokens of RFC 9068.",
    },
    leeway = {
      type = "duration",
      default = "30s",
      max = 300,
      doc = "How far the clocks of issuer and gateway may be apart.",
    },
    from = {
      type = "list",
      default = { "bearer" },
      doc = "Where the token is looked for, in this order: `bearer` (`Authorization`, else the entries), `subprotocol` (the entries `authorization-bearer.TOKEN` and `authorization.TOKEN` alone), `header:NAME`, `cookie:NAME`, `query:NAME`. The first place that has one counts.",
    },
    principal = {
      type = "string",
      default = "sub",
      doc = "Claim with the principal's id; `a.b` is the claim `b` inside `a`.",
    },
    attributes = {
      type = "list",
      doc = "Claims that become attributes of the principal: `claim`, or `attribute=claim`. Absent: the first 32 by name that are a text, a number, a boolean or a list of them.",
    },
    functions = {
      type = "string",
      doc = "Claim with the ids of the functions that the principal may use, a list or a text with spaces. A token without it may use none. Absent: functions are those of the configuration.",
    },
    scopes = {
      type = "list",
      default = {},
      doc = "Scopes (`scope` or `scp`) that a token must have, all of them.",
    },
    claims = {
      type = "map",
      default = {},
      doc = "Claims that a token must have, with their values; a claim that is a list must have the value in it. `*`: any value.",
    },
    realm = {
      type = "string",
      default = "streamgate",
      doc = "Realm named in the `WWW-Authenticate` challenge.",
    },
  },
  rejections = {
    ["auth.insufficient_scope"] = { status = 403, message = "The token does not have the scope that is needed here." },
    ["auth.keys_unavailable"] = { status = 503, message = "Tokens cannot be checked at the moment. Try again soon." },
  },
}
