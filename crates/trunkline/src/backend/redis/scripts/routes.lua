-- Enters or removes a stream.
-- KEYS: routes, control stream, the stream. ARGV: version that was looked at, name, record in JSON (empty: remove).
-- Answers STALE, or the new version.
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then
  return redis.error_reply('STALE the routes have changed')
end
local stream = KEYS[3]
if redis.call('HEXISTS', KEYS[1], 'version') == 0 then
  -- Versions grow also over a loss of all data, and the era tells that there was one.
  redis.call('HSET', KEYS[1], 'version', clock(), 'era', clock())
end
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 's:' .. ARGV[2], ARGV[3])
else
  redis.call('HDEL', KEYS[1], 's:' .. ARGV[2])
  for _, name in ipairs(redis.call('SMEMBERS', stream .. ':consumers')) do
    drop_consumer(stream, name)
  end
  redis.call('DEL', stream, stream .. ':added', stream .. ':consumers', stream .. ':deleted')
  wake(stream)
  redis.call('PEXPIRE', stream .. ':wake', 3600000)
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'name', ARGV[2], 'tip', last_id(stream), 'index', added(stream))
return version
