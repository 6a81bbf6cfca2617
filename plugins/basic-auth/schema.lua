--- schema.lua: the contract of basic-auth.

return {
  summary = "Admits requests with a user name and its password.",
  phases = { "authenticate", "session_tick" },
  on_error = "reject",
  security = "untrusted-client", -- hardened against anything a browser can send
  fields = {
    users = {
      type = "map",
      default = {},
      doc = "Users, each with the hash of the password: bcrypt (`htpasswd -nB NAME`) or argon2id.",
    },
    users_file = {
      type = "secret",
      doc = "More users, as `file:PATH`: lines `user:hash`, as `htpasswd -B` writes them.",
    },
    realm = {
      type = "string",
      default = "streamgate",
      doc = "Realm named in the `WWW-Authenticate` challenge; browsers show it.",
    },
    remember = {
      type = "duration",
      default = "1m",
      max = 3600,
      doc = "How long a right pair of user and password is remembered, so that not every request pays for the hash. `0s`: not at all.",
    },
  },
  rejections = {
    ["auth.missing_password"] = { status = 401, message = "This endpoint needs a user name and a password." },
    ["auth.wrong_password"] = { status = 401, message = "There is no such user with this password." },
    ["auth.changed_password"] = { status = 401, message = "The password has changed since the session began." },
  },
}
