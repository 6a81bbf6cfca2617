--- schema.lua: the contract of oidc-login.

return {
  summary = "Signs people in at an OpenID Connect provider, and knows them by a sealed cookie afterwards.",
  phases = { "authenticate", "session_tick" },
  on_error = "reject",
  security = "untrusted-client", -- hardened against anything a browser can send
  fields = {
    issuer = {
      type = "url",
      required = true,
      doc = "The provider's issuer, exactly as its discovery document names it.",
    },
    client_id = {
      type = "string",
      required = true,
      doc = "What the gateway is called at the provider.",
    },
    client_secret = {
      type = "secret",
      doc = "The client's secret, unless `client_auth` is `none`.",
    },
    client_auth = {
      type = "string",
      choices = { "client_secret_basic", "client_secret_post", "none" },
      default = "client_secret_basic",
      doc = "How the gateway shows at the token endpoint who it is.",
    },
    redirect_uri = {
      type = "string",
      required = true,
      doc = "Where the provider sends the browser back to: a URL of this gateway with a path of its own, as registered at the provider. With `https` the cookies are `Secure` and begin with `__Host-`.",
    },
    cookie_key = {
      type = "secret",
      required = true,
      doc = "What the cookies are sealed with, at least 32 characters; the same in all replicas.",
    },
    cookie_name = {
      type = "string",
      default = "streamgate-oidc",
      doc = "Name of the session's cookie, after the prefix; those of sign-ins under way begin with it.",
    },
    scopes = {
      type = "list",
      default = { "openid" },
      doc = "Scopes to ask for; `openid` is always one of them.",
    },
    parameters = {
      type = "map",
      default = {},
      doc = "Further parameters of the authorization request, such as `prompt` or `hd`.",
    },
    algorithms = {
      type = "list",
      default = { "RS256", "ES256" },
      doc = "Signatures of ID tokens that are accepted: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA.",
    },
    userinfo = {
      type = "boolean",
      default = false,
      doc = "Whether claims are asked for at the userinfo endpoint too, for providers that leave them out of the ID token.",
    },
    id_claim = {
      type = "string",
      default = "sub",
      doc = "The claim that becomes the principal's id.",
    },
    claims = {
      type = "list",
      default = {},
      doc = "Claims that become attributes of the principal. `functions` becomes the functions that it may use.",
    },
    lifetime = {
      type = "duration",
      default = "8h",
      min = 60, -- seconds
      max = 2592000, -- 30 days
      doc = "How long a sign-in is good, whatever the browser does meanwhile; from 1m to 30d.",
    },
    login_window = {
      type = "duration",
      default = "10m",
      min = 60, -- seconds
      max = 3600,
      doc = "How long somebody may take at the provider; from 1m to 1h.",
    },
    login_path = {
      type = "string",
      default = "/oidc/login",
      doc = "Path that begins a sign-in; its parameter `return` is the path to come back to.",
    },
    logout_path = {
      type = "string",
      default = "/oidc/logout",
      doc = "Path that ends one.",
    },
    provider_logout = {
      type = "boolean",
      default = true,
      doc = "Whether signing out also leads through the provider's `end_session_endpoint`, when it has one.",
    },
    keep_id_token = {
      type = "boolean",
      default = false,
      doc = "Whether the cookie keeps the ID token, if it fits, as the hint that some providers want for signing out.",
    },
    on_unavailable = {
      type = "string",
      choices = { "allow", "reject" },
      default = "allow",
      doc = "What becomes of requests while the plugins' store cannot say who has signed out: they pass, or are refused.",
    },
    after_logout = {
      type = "string",
      doc = "URL to go to after signing out, registered at the provider. Absent: the provider's page, or a plain one.",
    },
  },
  rejections = {
    ["oidc.login_needed"] = { status = 401, message = "Sign in first, by opening the page in a browser." },
    ["oidc.session_over"] = { status = 401, message = "Your sign-in is over. Sign in again." },
    ["oidc.signed_out"] = { status = 401, message = "You have signed out." },
    ["oidc.attempt_unknown"] = {
      status = 400,
      message = "This sign-in was not begun in this browser, took too long, or is finished already. Open the page again.",
    },
    ["oidc.callback_malformed"] = {
      status = 400,
      message = "The identity provider sent you back without an answer. Open the page again.",
    },
    ["oidc.denied"] = { status = 403, message = "The identity provider did not let you in." },
    ["oidc.identity_missing"] = { status = 403, message = "The identity provider did not say who you are." },
    ["oidc.logout_foreign"] = { status = 403, message = "Only a page of this site can sign you out." },
    ["oidc.identity_too_large"] = {
      status = 500,
      message = "The identity provider says more about you than a cookie can hold.",
    },
    ["oidc.provider_refused"] = { status = 502, message = "The identity provider did not complete the sign-in." },
    ["oidc.token_invalid"] = { status = 502, message = "The identity provider's answer is not valid." },
    ["oidc.store_away"] = {
      status = 503,
      message = "It cannot be found out now whether you have signed out. Try again in a moment.",
    },
    ["oidc.provider_away"] = {
      status = 503,
      message = "The identity provider cannot be reached. Try again in a moment.",
    },
  },
}
