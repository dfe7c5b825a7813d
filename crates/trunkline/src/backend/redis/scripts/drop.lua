-- Takes a stream away that was removed from the routes. KEYS: stream, version known here. ARGV: version of the routes
-- without it. Answers 1, or 0 if it was entered again meanwhile.
local stream = KEYS[1]
if tonumber(redis.call('GET', KEYS[2]) or 0) > tonumber(ARGV[1]) then
  return 0
end
-- Whoever still routes by older ones finds out. Without the key it asks, too.
redis.call('SET', KEYS[2], ARGV[1], 'PX', 3600000)
for _, name in ipairs(redis.call('SMEMBERS', stream .. ':consumers')) do
  drop_consumer(stream, name)
end
redis.call('DEL', stream, stream .. ':added', stream .. ':consumers')
wake(stream)
redis.call('PEXPIRE', stream .. ':wake', 3600000)
return 1
