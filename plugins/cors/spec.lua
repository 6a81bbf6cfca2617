--- spec.lua: what cors promises.

local spec = require "streamgate.spec"

local function preflight(page)
  return {
    method = "OPTIONS",
    path = "/sign_in",
    headers = {
      origin = page,
      ["access-control-request-method"] = "GET",
      ["access-control-request-headers"] = "authorization, x-mine",
    },
  }
end

return spec.plugin("cors", {}, function(it)
  it("gives every response the three headers of NVIDIA's guide", function(plugin)
    local out = plugin:response { status = 200 }
    spec.header(out, "access-control-expose-headers", "*")
    spec.header(out, "access-control-allow-headers", "*")
    spec.header(out, "access-control-allow-origin", "*")
    spec.header(out, "access-control-allow-credentials", nil)
    spec.header(out, "vary", nil)
  end)

  it("answers a preflight, authorization included", function(plugin)
    local out = plugin:request(preflight "https://app.example")
    spec.responded(out, 204)
    spec.header(out, "access-control-allow-origin", "*")
    spec.header(out, "access-control-allow-headers", "*, authorization")
    spec.header(out, "access-control-max-age", "3600")
  end)

  it("leaves an OPTIONS that is no preflight to the upstream", function(plugin)
    spec.passed(plugin:request { method = "OPTIONS", path = "/" })
    spec.passed(plugin:request { method = "GET", headers = { origin = "https://app.example" } })
  end)

  it("answers an origin of the list with itself, and no other", function(plugin)
    local listed = plugin:with { origins = { "https://app.example", "http://localhost:3000" } }
    for page, answer in pairs {
      ["https://app.example"] = "https://app.example",
      ["HTTPS://App.Example"] = "HTTPS://App.Example",
      ["http://localhost:3000"] = "http://localhost:3000",
      ["http://localhost:3001"] = false,
      ["https://app.example.evil.example"] = false,
      ["https://evil.example"] = false,
      ["null"] = false,
      [""] = false,
    } do
      local out = listed:response { status = 200, request = { headers = { origin = page } } }
      spec.header(out, "access-control-allow-origin", answer or nil)
      spec.header(out, "access-control-allow-credentials", answer and "true" or nil)
      spec.header(out, "vary", "Origin")
    end
  end)

  it("grants a request without an origin nothing, when there is a list", function(plugin)
    local out = plugin:with({ origins = { "https://app.example" } }):response { status = 200 }
    spec.header(out, "access-control-allow-origin", nil)
  end)

  it("names the headers one by one where credentials make a star useless", function(plugin)
    local listed = plugin:with { origins = { "https://app.example" } }
    local out = listed:request(preflight "https://app.example")
    spec.responded(out, 204)
    spec.header(out, "access-control-allow-headers", "authorization, x-mine")
    spec.header(out, "access-control-allow-credentials", "true")
    out = listed:response {
      status = 200,
      headers = { ["nvcf-reqid"] = "1" },
      request = { headers = { origin = "https://app.example" } },
    }
    spec.header(out, "access-control-expose-headers", "nvcf-reqid, vary")
  end)

  it("refuses a preflight of another origin by granting nothing", function(plugin)
    local out = plugin:with({ origins = { "https://app.example" } }):request(preflight "https://evil.example")
    spec.responded(out, 204)
    spec.header(out, "access-control-allow-origin", nil)
    spec.header(out, "access-control-allow-methods", nil)
  end)

  it("does not offer credentials when it is told not to", function(plugin)
    local out = plugin
      :with({ origins = { "https://app.example" }, credentials = false })
      :response { status = 200, request = { headers = { origin = "https://app.example" } } }
    spec.header(out, "access-control-allow-origin", "https://app.example")
    spec.header(out, "access-control-allow-credentials", nil)
  end)

  it("overrides what the response carries already", function(plugin)
    local out = plugin:response {
      status = 200,
      headers = {
        ["access-control-allow-origin"] = "https://other.example",
        ["access-control-allow-credentials"] = "true",
      },
    }
    spec.header(out, "access-control-allow-origin", "*")
    spec.header(out, "access-control-allow-credentials", nil)
    out = plugin:with({ origins = { "https://app.example" } }):response {
      status = 200,
      headers = { ["access-control-allow-origin"] = "*", ["access-control-allow-credentials"] = "true" },
    }
    spec.header(out, "access-control-allow-origin", nil)
    spec.header(out, "access-control-allow-credentials", nil)
  end)
end)
