-- Where streams stand.
-- KEYS: routes, then the streams. ARGV: version of the routes by which the streams were chosen (empty: none).
-- Answers STALE, or for each stream {last id ever, newest id kept or '', messages ever added}.
if ARGV[1] ~= '' and (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then
  return redis.error_reply('STALE the routes have changed')
end
local tips = {}
for i = 2, #KEYS do
  local newest = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)
  tips[#tips + 1] = { last_id(KEYS[i]), newest[1] and newest[1][1] or '', added(KEYS[i]) }
end
return tips
