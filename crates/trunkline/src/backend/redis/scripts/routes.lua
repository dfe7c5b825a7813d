-- The routes, made where there are none yet: their versions grow also over a loss of all data, and the era tells that
-- there was one. That it has begun is told on the control stream, so that all who still know the one before look at once.
-- KEYS: routes, control stream. Answers names and values; `now` is the clock.
local now = string.format('%.0f', clock())
if redis.call('HEXISTS', KEYS[1], 'version') == 0 then
  redis.call('HSET', KEYS[1], 'version', now, 'era', now)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'name', '', 'tip', '0-0', 'index', 0)
end
local routes = redis.call('HGETALL', KEYS[1])
routes[#routes + 1] = 'now'
routes[#routes + 1] = now
return routes
