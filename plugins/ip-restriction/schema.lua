--- schema.lua: the contract of ip-restriction.

return {
  summary = "Admits or refuses requests by the address that they come from.",
  phases = { "on_request" },
  on_error = "reject",
  security = "untrusted-client", -- hardened against anything a browser can send
  fields = {
    allow = {
      type = "list",
      of = "cidr",
      doc = "Addresses and networks that may come in, such as `10.0.0.0/8` or `2001:db8::1`. Absent: all that `deny` does not name.",
    },
    deny = {
      type = "list",
      of = "cidr",
      default = {},
      doc = "Addresses and networks that may not come in, also when `allow` names them.",
    },
    proxies = {
      type = "list",
      of = "cidr",
      default = {},
      doc = "Proxies before the gateway whose `header` is believed. Without any, the address is that of the connection.",
    },
    header = {
      type = "header",
      default = "x-forwarded-for",
      doc = "Header in which each proxy adds, at the right, the address that it was talking to.",
    },
  },
  rejections = {
    ["ip.refused"] = { status = 403, message = "This service may not be used from your address." },
  },
}
