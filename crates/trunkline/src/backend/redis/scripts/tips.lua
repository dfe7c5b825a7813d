-- Where a stream stands. KEYS: stream, count of messages ever added.
-- Answers {last id ever, newest id kept or '', messages ever added}.
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
return { last_id(KEYS[1]), newest[1] and newest[1][1] or '', added(KEYS[1]) }
