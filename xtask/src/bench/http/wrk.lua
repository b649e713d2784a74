-- Puts load on one page. wrk calls these functions. Arguments: the page, and a file with a cookie on each line.

local requests, cookies, position, logs_in_and_out = {}, {}, 0, false

function init(args)
  local page, file = args[1], args[2]
  if page == "log_in_out" then
    logs_in_and_out = true
    requests[1] = wrk.format("POST", "/log_in")
    response = keep_cookie
    return
  end
  local method = (page == "write") and "POST" or "GET"
  for cookie in io.lines(file) do
    requests[#requests + 1] = wrk.format(method, "/" .. page, { Cookie = cookie })
  end
end

function request()
  if not logs_in_and_out then
    position = position % #requests + 1
    return requests[position]
  end
  -- Every login is followed by the logout of a session that has been answered.
  local cookie = table.remove(cookies)
  return cookie and wrk.format("POST", "/log_out", { Cookie = cookie }) or requests[1]
end

function keep_cookie(status, headers)
  for name, value in pairs(headers) do
    if name:lower() == "set-cookie" then
      local cookie = value:match("^[^;]+")
      -- A logout empties the cookie.
      if not cookie:match("=$") and not cookie:match('=""$') then cookies[#cookies + 1] = cookie end
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"seconds":%f,"p50":%f,"p99":%f,"refused":%d,"broken":%d,"timed_out":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write, errors.timeout
  ))
end
