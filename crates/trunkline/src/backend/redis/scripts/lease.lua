-- Takes or renews the lease of a keyed consumer. A new holder finds everything unsettled due at once, by offset.
-- KEYS: stream. ARGV: consumer, member, identity of the consumer, ms. Answers 'GONE', 'STANDBY', 'HELD' or 'NEW'.
local stream, name, member = KEYS[1], ARGV[1], ARGV[2]
local consumer, due, lease = stream .. ':consumer:' .. name, stream .. ':due:' .. name, stream .. ':lease:' .. name
local known = redis.call('HMGET', consumer, 'identity', 'holder')
even_when_full(due)
if known[1] ~= ARGV[3] and (known[1] or redis.call('EXISTS', stream .. ':gone:' .. name) == 1) then
  return 'GONE'
end
local holder = redis.call('GET', lease)
if holder and holder ~= member then
  return 'STANDBY'
end
redis.call('SET', lease, member, 'PX', ARGV[4])
if holder or known[2] == member then
  return 'HELD'
end
if known[1] then
  redis.call('HSET', consumer, 'holder', member)
end
for _, text in ipairs(redis.call('ZRANGE', due, 0, -1)) do
  redis.call('ZADD', due, 0, text)
end
local group, start, page, lost = group_of(name, ARGV[3]), '-', nil, 0
repeat
  page = redis.pcall('XPENDING', stream, group, start, '+', 1000)
  for _, held in ipairs(page) do
    if held[2] ~= '~' then
      lost = lost + 1
      if not give_back(stream, group, due, held[1], 0) and known[1] then
        redis.call('HINCRBY', consumer, 'missed', 1)
      end
    end
    start = held[1]
  end
until #page < 1000
if lost > 0 and known[1] then
  redis.call('HINCRBY', consumer, 'fence', lost)
end
wake(stream)
return 'NEW'
