--- schema.lua: the contract of bench-policy.

return {
  summary = "The policy of the comparison with other proxies.",
  phases = { "authenticate", "upstream_request", "response_headers" },
}
