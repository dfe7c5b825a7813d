-- The routes, made where there are none yet: their versions grow also over a loss of all data, and the era tells that
-- there was one. KEYS: routes. Answers names and values.
if redis.call('HEXISTS', KEYS[1], 'version') == 0 then
  redis.call('HSET', KEYS[1], 'version', clock(), 'era', clock())
end
return redis.call('HGETALL', KEYS[1])
