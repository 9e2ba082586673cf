-- What wrk sends. BENCH_WHAT names the request, BENCH_TOKENS the file of customers and their licenses.
local what = os.getenv("BENCH_WHAT")
local admin = "Bearer " .. os.getenv("BENCH_ADMIN")
local bare = os.getenv("BENCH_BARE") == "1"
local customers = {}
for line in io.lines(os.getenv("BENCH_TOKENS")) do
  local id, token = line:match("(%S+) (%S+)")
  customers[#customers + 1] = {id = id, own = "Bearer " .. token}
end
math.randomseed(os.time())

local function headers(customer)
  return {["Authorization"] = customer and customer.own or admin, ["Content-Type"] = "application/json"}
end

local function report(customer, timestamp)
  return string.format('{"customerId":"%s","instanceId":"i0",%s"activeDevices":%d,"totalDevices":30}',
                       customer.id, timestamp, math.random(12, 19))
end

local function some_time()
  local at = os.time() - math.random(60, 34 * 86400)
  return '"timestamp":"' .. os.date("!%Y-%m-%dT%H:%M:%S", at) .. string.format('.%06dZ",', math.random(0, 999999))
end

local make = {
  ["report"] = function(c)
    return "POST", bare and "/report" or "/api/usage/report", headers(c), report(c, "")
  end,
  ["plain-report"] = function(c) return "POST", "/plain-report", headers(c), report(c, "") end,
  ["batch"] = function(c)
    local items = {}
    for n = 1, 100 do items[n] = report(c, some_time()) end
    return "POST", "/api/usage/reports", headers(c), '{"reports":[' .. table.concat(items, ",") .. "]}"
  end,
  ["license"] = function(c)
    return "GET", bare and "/sign" or "/api/licenses/" .. c.id, headers(c)
  end,
  ["history"] = function(c)
    return "GET", bare and "/page" or "/api/usage/" .. c.id .. "?days=90&limit=100", headers(c)
  end,
  ["customer"] = function(c)
    return "GET", bare and "/customer/" .. c.id or "/api/customers/" .. c.id, headers(c)
  end,
  ["overview"] = function() return "GET", "/api/usage?limit=200", headers() end,
  ["health"] = function() return "GET", "/health", {} end,
}

request = function()
  local method, path, fields, body = make[what](customers[math.random(#customers)])
  return wrk.format(method, path, fields, body)
end

done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"failed":%d}\n', summary.requests,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
