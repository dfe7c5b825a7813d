-- Changes the routes.
-- KEYS: routes, control stream. ARGV: what, and a version.
-- 'prepare', version that was looked at, name, record in JSON (empty: remove): says what is about to change, so that who
-- answers requests is listed where they will go.
-- 'commit', version that was prepared, name, record (empty: remove), last id of the stream, messages ever added to it.
-- 'raise', a version: has the routes be newer than that.
-- Answers STALE, or the new version.
local what, looked_at = ARGV[1], tonumber(ARGV[2])
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or 0)
if what ~= 'raise' and version ~= looked_at then
  return redis.error_reply('STALE the routes have changed')
end
-- By the clock, so that a server that has lost the last changes never gives a version out twice.
version = string.format('%.0f', math.max(version + 1, looked_at + 1, clock()))
redis.call('HSET', KEYS[1], 'version', version)
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  -- Another change that was prepared can not be committed any more.
  if string.sub(name, 1, 2) == 'p:' then
    redis.call('HDEL', KEYS[1], name)
  end
end
if what == 'prepare' then
  redis.call('HSET', KEYS[1], 'p:' .. ARGV[3], ARGV[4])
elseif what == 'commit' then
  if ARGV[4] ~= '' then
    redis.call('HSET', KEYS[1], 's:' .. ARGV[3], ARGV[4])
  else
    redis.call('HDEL', KEYS[1], 's:' .. ARGV[3])
  end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'name', ARGV[3], 'tip', ARGV[5], 'index', ARGV[6])
end
return version
