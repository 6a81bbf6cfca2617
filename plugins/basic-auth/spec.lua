--- spec.lua: what basic-auth promises.

local base64 = require "streamgate.base64"
local spec = require "streamgate.spec"

-- The cheapest hashes there are: specs prove what is decided, not what it costs.
local users = {
  ada = "$2b$04$abcdefghijklmnopqrstuuLZYjhNQAOdpbzt4WxWlUHjv1wsyH5DG", -- s3cret
  bob = "$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm", -- hunter2
  carol = "$2b$04$zbcdefghijklmnopqrstuuB14jthK7FgDI/qvgUha89e41iofjcfq", -- p:ss wörd
  dan = "$argon2id$v=19$m=64,t=1,p=1$yURqjx/H4mhADRTpNFsWYA$hnsyBzX70z7AX1F8C6T5mWroDXCN+tlCWHKev/lk3HE", -- s3cret
}

local challenge = 'Basic realm="streamgate", charset="UTF-8"'

local function with(pair)
  return { headers = { authorization = "Basic " .. base64.encode(pair) } }
end

return spec.plugin("basic-auth", { users = users }, function(it)
  it("refuses a request without a password", function(plugin)
    local out = plugin:request { path = "/sign_in" }
    spec.rejected(out, "auth.missing_password")
    spec.equal(out.status, 401)
    spec.header(out, "www-authenticate", challenge)
  end)

  it("tells later plugins who is asking", function(plugin)
    local out = plugin:request(with "ada:s3cret")
    spec.passed(out)
    spec.set(out, "principal", { id = "ada" })
  end)

  it("knows bcrypt and argon2, and passwords with colons and beyond ASCII", function(plugin)
    for pair, user in pairs {
      ["ada:s3cret"] = "ada",
      ["bob:hunter2"] = "bob",
      ["carol:p:ss wörd"] = "carol",
      ["dan:s3cret"] = "dan",
    } do
      local out = plugin:request(with(pair))
      spec.passed(out)
      spec.equal(out.set.principal.id, user)
    end
  end)

  it("reads users from a file as htpasswd writes it", function(plugin)
    local text = ("# of the lab\n\nada:%s\r\nbob:%s"):format(users.ada, users.bob)
    local filed = plugin:with { users = { dan = users.dan }, users_file = spec.file(text) }
    spec.passed(filed:request(with "ada:s3cret"))
    spec.passed(filed:request(with "bob:hunter2"))
    spec.passed(filed:request(with "dan:s3cret"))
    spec.rejected(filed:request(with "carol:p:ss wörd"), "auth.wrong_password")
    spec.rejected(filed:request(with "ada:hunter2"), "auth.wrong_password")
  end)

  it("refuses a wrong password and a wrong user alike", function(plugin)
    for _, pair in ipairs {
      "ada:wrong",
      "ada:",
      "ada:S3CRET",
      "ada:s3cret ",
      "ada:hunter2",
      "Ada:s3cret",
      "nobody:s3cret", -- the password of the user whose hash stands in
      ":s3cret",
      "carol:p",
      "ada:" .. users.ada,
    } do
      local out = plugin:request(with(pair))
      spec.rejected(out, "auth.wrong_password")
      spec.equal(out.status, 401)
      spec.header(out, "www-authenticate", challenge)
      spec.set(out, "principal", nil)
    end
  end)

  it("takes nothing that only looks like a pair", function(plugin)
    for _, value in ipairs {
      "Basic",
      "Basic ",
      "Basic ada:s3cret",
      "Basic " .. base64.encode "ada",
      "Basic " .. base64.encode "ada:s3cret" .. " extra",
      "Basic *" .. base64.encode "ada:s3cret",
      "Bearer " .. base64.encode "ada:s3cret",
      "Basic" .. base64.encode "ada:s3cret",
      base64.encode "ada:s3cret",
    } do
      spec.rejected(plugin:request { headers = { authorization = value } }, "auth.missing_password")
    end
  end)

  it("takes the scheme in any case", function(plugin)
    spec.passed(plugin:request { headers = { authorization = "bASIC " .. base64.encode "ada:s3cret" } })
  end)

  it("is not troubled by hostile pairs", function(plugin)
    for _, pair in ipairs { "ada:s3cret\n", "ada\0:s3cret", "ada:s3cret\0", "a\127:b", "ada:\r\nx-admin: 1" } do
      spec.rejected(plugin:request(with(pair)), "auth.missing_password") -- RFC 7617 forbids control characters
    end
    for _, pair in ipairs {
      ("u"):rep(20000) .. ":s3cret",
      "ada:" .. ("p"):rep(40000),
      "ada:s3cret" .. ("p"):rep(1100),
      "\xff\xfe:\xff",
      "__index:x",
      "-:x",
    } do
      spec.rejected(plugin:request(with(pair)), "auth.wrong_password")
    end
  end)

  it("remembers a right pair, and never a wrong one", function(plugin)
    for _ = 1, 3 do
      spec.passed(plugin:request(with "ada:s3cret"))
      spec.rejected(plugin:request(with "ada:wrong"), "auth.wrong_password")
      spec.rejected(plugin:request(with "nobody:s3cret"), "auth.wrong_password")
    end
    spec.passed(plugin:request { headers = with("ada:s3cret").headers, at = 10000 })
  end)

  it("forgets a pair whose password has changed", function(plugin)
    spec.passed(plugin:request(with "ada:s3cret"))
    local changed = plugin:with { users = { ada = users.bob } }
    spec.rejected(changed:request(with "ada:s3cret"), "auth.wrong_password")
    spec.passed(changed:request(with "ada:hunter2"))
  end)

  it("works without remembering", function(plugin)
    local forgetful = plugin:with { users = users, remember = "0s" }
    spec.passed(forgetful:request(with "ada:s3cret"))
    spec.rejected(forgetful:request(with "ada:wrong"), "auth.wrong_password")
    spec.rejected(forgetful:request(with "nobody:s3cret"), "auth.wrong_password")
  end)

  it("ends a session whose user was removed or has another password", function(plugin)
    local out = plugin:request(with "ada:s3cret")
    local session = { principal = out.set.principal, set = { ["basic-auth"] = out.set["basic-auth"] } }
    spec.passed(plugin:tick(session))
    spec.rejected(plugin:with({ users = { ada = users.bob } }):tick(session), "auth.changed_password")
    spec.rejected(plugin:with({ users = { bob = users.bob } }):tick(session), "auth.changed_password")
  end)

  it("lets a session be that another plugin let in", function(plugin)
    spec.passed(plugin:tick { principal = { id = "ada" } })
  end)

  it("tells no later plugin the password or its hash", function(plugin)
    local out = plugin:request(with "ada:s3cret")
    spec.equal(#out.set["basic-auth"], 16)
    spec.upstream(out, "authorization", nil)
  end)

  it("names the realm it was told", function(plugin)
    local out = plugin:with({ users = users, realm = 'the "lab"' }):request {}
    spec.header(out, "www-authenticate", 'Basic realm="the \\"lab\\"", charset="UTF-8"')
  end)

  it("wants users, with hashes that it can check", function()
    spec.refused({}, "there are no users")
    spec.refused({ users = { ada = "s3cret" } }, "not a hash")
    spec.refused({ users = { ada = "$apr1$abcdefgh$0123456789012345678901" } }, "not a hash")
    spec.refused({ users = { ada = "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=" } }, "not a hash")
    spec.refused({ users = { ["a:b"] = users.ada } }, "not a user name")
    spec.refused({ users = { ["-"] = users.ada } }, "not a user name")
    spec.refused({ users = { [("u"):rep(257)] = users.ada } }, "not a user name")
    spec.refused({ users_file = spec.file "# nobody\n\n" }, "there are no users")
    spec.refused({ users_file = spec.file "\nada" }, "users_file: line 2: expected `user:hash`")
    spec.refused({ users_file = spec.file "ada:" }, "users_file: line 1: expected `user:hash`")
    spec.refused({ users_file = spec.file "ada:s3cret" }, "users_file: line 1: not a hash")
    spec.refused({ users_file = spec.file(":" .. users.ada) }, "users_file: line 1: not a user name")
    spec.refused({ users = { ada = users.ada }, users_file = spec.file("ada:" .. users.bob) }, "there twice")
    spec.refused({ users_file = spec.file(("ada:%s\nada:%s"):format(users.ada, users.bob)) }, "line 2: this user")
    spec.refused({ users = users, remember = "2h" }, "remember")
  end)
end)
