--- schema.lua: the contract of {{name}}.

return {
  summary = "Says here, in a sentence, what it does.",
  phases = { {{phases}} },
  on_error = "reject", -- what becomes of a request when the plugin fails
-- {{for authenticate}}
  authenticates = false, -- true once it makes sure of who is asking
-- {{end}}
-- {{for session_message}}
  messages = { from = "browser", max = "64KiB" }, -- what it wants to see; a larger one ends the session
-- {{end}}
  fields = {
-- {{for on_request authenticate authorize select upstream_request response_headers}}
    header = {
      type = "header",
      default = "x-{{name}}",
      doc = "Header that the plugin looks at.",
    },
-- {{end}}
-- {{for session_tick}}
    longest = {
      type = "duration",
      default = "8h",
      doc = "How long a session may be open.",
    },
-- {{end}}
  },
-- {{for on_request authorize session_message session_tick}}
  rejections = {
    ["{{name}}.refused"] = { status = 403, message = "This service does not take your request." },
  },
-- {{end}}
}
