--- plugin.lua: says here, in a sentence, what it does.

-- {{for init session_open session_park session_resume session_end log}}
local log = require "streamgate.log"

-- {{end}}
--- What the chain says, with the defaults of schema.lua.
--- @class Conf.{{class}}
-- {{for on_request authenticate authorize select upstream_request response_headers}}
--- @field header string
-- {{end}}
-- {{for session_tick}}
--- @field longest number seconds
-- {{end}}

--- @type streamgate.Plugin
local M = {}

-- {{for init}}
--- @param _conf Conf.{{class}}
function M.init(_conf)
  log.debug "{{name}} begins"
end

-- {{end}}
-- {{for on_request}}
--- @param request streamgate.Request
--- @param conf Conf.{{class}}
--- @return streamgate.Decision?
function M.on_request(request, conf)
  if request:header(conf.header) == "no" then
    return request:reject "{{name}}.refused"
  end
end

-- {{end}}
-- {{for authenticate}}
--- @param request streamgate.Request
--- @param conf Conf.{{class}}
--- @return streamgate.Decision?
function M.authenticate(request, conf)
  local name = request:header(conf.header)
  if not name then
    return request:reject "auth.missing_token"
  end
  request:set("principal", { id = name }) -- an example: anybody may say any name
end

-- {{end}}
-- {{for authorize}}
--- @param request streamgate.Request
--- @param conf Conf.{{class}}
--- @return streamgate.Decision?
function M.authorize(request, conf)
  if request:header(conf.header) == "no" then
    return request:reject "{{name}}.refused"
  end
end

-- {{end}}
-- {{for select}}
--- @param request streamgate.Request
--- @param conf Conf.{{class}}
--- @return streamgate.Decision?
function M.select(request, conf)
  local id = request:header(conf.header)
  if id then
    request:set("function_id", id)
  end
end

-- {{end}}
-- {{for upstream_request}}
--- @param request streamgate.Request
--- @param upstream streamgate.Upstream
--- @param conf Conf.{{class}}
--- @return streamgate.Decision?
function M.upstream_request(request, upstream, conf)
  upstream:set_header(conf.header, request:id())
end

-- {{end}}
-- {{for response_headers}}
--- @param request streamgate.Request
--- @param response streamgate.Response
--- @param conf Conf.{{class}}
function M.response_headers(request, response, conf)
  response:set_header(conf.header, request:id())
end

-- {{end}}
-- {{for session_open}}
--- @param _request streamgate.Request
--- @param session streamgate.Session
--- @param _conf Conf.{{class}}
function M.session_open(_request, session, _conf)
  log.info("session " .. session:id() .. " is open")
end

-- {{end}}
-- {{for session_message}}
--- @param request streamgate.Request
--- @param message streamgate.Message
--- @param _conf Conf.{{class}}
--- @return streamgate.Decision?
function M.session_message(request, message, _conf)
  if message:payload() == "no" then
    return request:reject "{{name}}.refused"
  end
end

-- {{end}}
-- {{for session_tick}}
--- @param request streamgate.Request
--- @param session streamgate.Session
--- @param conf Conf.{{class}}
--- @return streamgate.Decision?
function M.session_tick(request, session, conf)
  if session:age() > conf.longest then
    return request:reject "{{name}}.refused"
  end
end

-- {{end}}
-- {{for session_park}}
--- @param _request streamgate.Request
--- @param session streamgate.Session
--- @param _conf Conf.{{class}}
function M.session_park(_request, session, _conf)
  log.info("session " .. session:id() .. " has lost its browser")
end

-- {{end}}
-- {{for session_resume}}
--- @param _request streamgate.Request
--- @param session streamgate.Session
--- @param _conf Conf.{{class}}
function M.session_resume(_request, session, _conf)
  log.info("session " .. session:id() .. " has its browser back")
end

-- {{end}}
-- {{for session_end}}
--- @param _request streamgate.Request
--- @param session streamgate.Session
--- @param _conf Conf.{{class}}
function M.session_end(_request, session, _conf)
  log.info("session " .. session:id() .. " is over")
end

-- {{end}}
-- {{for log}}
--- @param request streamgate.Request
--- @param response streamgate.Response
--- @param _conf Conf.{{class}}
function M.log(request, response, _conf)
  log.info(("%s was answered %d"):format(request:path(), response:status()))
end

-- {{end}}
return M
