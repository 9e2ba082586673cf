-- What wrk sends. BENCH_WHAT names the request, BENCH_LICENSES the file of customers and their licenses.
local what = os.getenv("BENCH_WHAT")
local customers = {}
for line in io.lines(os.getenv("BENCH_LICENSES")) do
  local id, license = line:match("(%S+) (%S+)")
  customers[#customers + 1] = {id = id, authorization = "Bearer " .. license}
end
math.randomseed(os.time())

local function report(customer, timestamp)
  return string.format('{"customerId":"%s","instanceId":"i0",%s"activeDevices":%d,"totalDevices":30}',
                       customer.id, timestamp, math.random(12, 19))
end

local function batch(customer)
  local items = {}
  for n = 1, 100 do
    local at = os.date("!%Y-%m-%dT%H:%M:%S", os.time() - math.random(60, 34 * 86400))
    items[n] = report(customer, string.format('"timestamp":"%s.%06dZ",', at, math.random(0, 999999)))
  end
  return '{"reports":[' .. table.concat(items, ",") .. "]}"
end

local make = {
  license = function(c) return "GET", "/api/licenses/" .. c.id end,
  customer = function(c) return "GET", "/api/customers/" .. c.id end,
  history = function(c) return "GET", "/api/usage/" .. c.id .. "?days=30&limit=100" end,
  report = function(c) return "POST", "/api/usage/report", report(c, "") end,
  batch = function(c) return "POST", "/api/usage/reports", batch(c) end,
  overview = function(c)
    return "GET", "/api/usage?limit=200", nil, "Bearer " .. os.getenv("BENCH_ADMIN")
  end,
}

request = function()
  local customer = customers[math.random(#customers)]
  local method, path, body, authorization = make[what](customer)
  local headers = {["Authorization"] = authorization or customer.authorization}
  if body then headers["Content-Type"] = "application/json" end
  return wrk.format(method, path, headers, body)
end

done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format('RESULT {"rate":%f,"p99_ms":%f,"failed":%d}\n',
    summary.requests / summary.duration * 1e6, latency:percentile(99) / 1e3,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
