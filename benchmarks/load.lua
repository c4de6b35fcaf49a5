-- wrk's requests: iconik's webhooks, each asset with a UUID of its own. Arguments: "create" or "pairs", and a seed.
-- "pairs" sends, in turns, a create and the closed proxy of an asset whose create went out a while ago.

local LAG = 64 -- assets: more than there are connections, so that each proxy comes after its create was answered

local EVENT = '{"data":{%s},"event_type":"assets","object_id":"%s","operation":"%s","realm":"%s",'
  .. '"system_domain_id":"bf0b8c12-7ccc-11e7-8d93-0a580a00022b"}'
local ASSET = '"analyze_status":"N/A","created_by_user":"f1b89efa-6cb5-11e7-b50b-0a580a0000f8",'
  .. '"date_created":"2018-01-03T18:30:26.885375+00:00","date_deleted":null,'
  .. '"date_modified":"2018-01-03T18:30:26.885390+00:00","deleted_by_user":null,"external_id":null,'
  .. '"id":"2b45a8ca-f0b4-11e7-a36b-0a580a00054a","status":"ACTIVE","title":"1_zps7uj5xqff.jpg","type":"ASSET"'
local PROXY = '"asset_id":"2b45a8ca-f0b4-11e7-a36b-0a580a00054a","bit_rate":8,"codec":"JPEG","format":"JPEG",'
  .. '"id":"c87231ac-f0a2-11e7-9777-0a580a000756","is_drop_frame":false,"name":"2015-Mille-lowres.jpg",'
  .. '"resolution":{"height":720,"width":1280},"status":"CLOSED","storage_id":"f7d92dd8-7ccc-11e7-8801-0a580a000229"'
local HEADERS = { ["Content-Type"] = "application/json", ["X-Webhook-Secret"] = "benchmark" }

local in_pairs
local created = {}
local first, last = 1, 0 -- of those in `created` whose proxy is still to be sent

function init(args)
  in_pairs = args[1] == "pairs"
  math.randomseed(tonumber(args[2]))
end

local function uuid()
  local r = math.random
  return string.format("%04x%04x-%04x-4%03x-a%03x-%04x%04x%04x", r(0, 65535), r(0, 65535), r(0, 65535), r(0, 4095),
    r(0, 4095), r(0, 65535), r(0, 65535), r(0, 65535))
end

local proxy_is_next = false

function request()
  proxy_is_next = in_pairs and not proxy_is_next and last - first >= LAG
  if proxy_is_next then
    local object_id = created[first]
    created[first] = nil
    first = first + 1
    return wrk.format("POST", "/proxy", HEADERS, EVENT:format(PROXY, object_id, "update", "proxies"))
  end
  last = last + 1
  created[last] = uuid()
  return wrk.format("POST", "/create", HEADERS, EVENT:format(ASSET, created[last], "create", "entity"))
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %f, "failed": %d, "median": %f, "slowest": %f}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1000, latency.max / 1000))
end
