-- wrk's half of client.py: posts the bodies of a folder in turn and ends with one line of figures.

local requests, turn, pause_ms = {}, 0, 0

function init(arguments)
  pause_ms = tonumber(arguments[3]) * 1000
  math.randomseed(os.time())
  local headers = { ["Content-Type"] = arguments[2] }
  while true do
    local file = io.open(string.format("%s/%d", arguments[1], #requests + 1), "rb")
    if not file then break end
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end

function delay()
  return -pause_ms * math.log(1 - math.random())
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

-- Answers, failures, microseconds, then the 50th and 99th percentiles in microseconds.
function done(summary, latency)
  local errors = summary.errors
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format("%d %d %d %d %d\n", summary.requests + broken, errors.status + broken,
    summary.duration, latency:percentile(50), latency:percentile(99)))
end
