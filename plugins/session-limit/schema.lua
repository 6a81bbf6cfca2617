--- schema.lua: the contract of session-limit.

return {
  summary = "Bounds how many sessions are open at the same time: of a principal, of a function, and in total.",
  phases = { "upstream_request", "session_open", "session_tick", "session_resume", "session_end", "log" },
  on_error = "reject",
  security = "untrusted-client",
  fields = {
    per_principal = {
      type = "integer",
      min = 1,
      max = 1000000,
      doc = "Most sessions of one principal; where nobody was authenticated, of one address. Absent: no limit.",
    },
    attribute = {
      type = "string",
      doc = "An attribute of the principal with a limit of its own, a whole number, in place of `per_principal`; 0 lets it have none. Absent: no principal has its own.",
    },
    per_function = {
      type = "integer",
      min = 1,
      max = 1000000,
      doc = "Most sessions of one function. Absent: no limit.",
    },
    total = {
      type = "integer",
      min = 1,
      max = 1000000,
      doc = "Most sessions altogether. Absent: no limit.",
    },
    name = {
      type = "string",
      default = "default",
      doc = "Limits of the same name count the same sessions, also those of other routes.",
    },
    lease = {
      type = "duration",
      default = "2m",
      min = 10,
      max = 86400,
      doc = "How long a session counts after it was last seen. It must be longer than `sessions.tick`; twice as long and more forgives a tick that is late.",
    },
    on_unavailable = {
      type = "string",
      choices = { "allow", "reject" },
      default = "reject",
      doc = "What becomes of a new session when the store of `plugins.store` does not answer.",
    },
  },
  rejections = {
    ["sessions.too_many"] = { status = 429, message = "You have as many sessions open as you may have. Close one of them first." },
    ["sessions.function_full"] = { status = 503, message = "All sessions of this function are taken. Try again later." },
    ["sessions.all_taken"] = { status = 503, message = "All sessions are taken. Try again later." },
    ["sessions.limit_unavailable"] = { status = 503, message = "The gateway cannot count sessions at the moment. Try again." },
  },
}
