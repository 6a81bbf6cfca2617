--- schema.lua: the contract of acl.

return {
  summary = "Says which functions a principal may use, and refuses all others.",
  phases = { "authorize", "select", "upstream_request", "session_tick" },
  on_error = "reject",
  security = "untrusted-client", -- hardened against anything a browser can send
  after = { "function-router" }, -- both work in select, and this one judges what that one chose
  fields = {
    principals = {
      type = "map",
      of = "list",
      default = {},
      doc = "For ids of principals the functions that each may use; `*` stands for every function.",
    },
    attribute = {
      type = "string",
      default = "groups",
      doc = "Attribute of the principal whose value, or whose values when it is a list, are looked up in `groups`.",
    },
    groups = {
      type = "map",
      of = "list",
      default = {},
      doc = "For values of the attribute the functions that its principals may use; `*` stands for every function.",
    },
    everybody = {
      type = "list",
      default = {},
      doc = "Functions that every principal may use; `*` stands for every function.",
    },
  },
}
