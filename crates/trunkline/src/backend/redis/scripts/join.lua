-- Joins a consumer, creating it where it is not there.
-- KEYS: stream, version of the routes known here; in a cluster also all others.
-- ARGV: version of the routes in which the stream was found (empty: it is built in), consumer, member, identity of the consumer if it is
-- made now, how to start ('new', 'beginning', 'after', 'at'), id to start after, ack_wait in ms, filter, keyed (0 or 1),
-- ms after which a member that was not seen is forgotten.
-- Answers STALE, {'OK', identity, id it started after, number of the message there}, {'CONFLICT', filter, keyed} or
-- {'AHEAD', last id}.
local stream, name, member = KEYS[1], ARGV[2], ARGV[3]
local consumer = stream .. ':consumer:' .. name
local members = stream .. ':members:' .. name
local now = clock()
even_when_full(members)
if ARGV[1] ~= '' then
  local known = tonumber(redis.call('GET', KEYS[2]) or 0)
  if known > tonumber(ARGV[1]) then
    return redis.error_reply('STALE ' .. string.format('%.0f', known))
  elseif known < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[2], ARGV[1])
  end
end
if redis.call('EXISTS', consumer) == 1 then
  local known = redis.call('HMGET', consumer, 'filter', 'keyed')
  if known[1] ~= ARGV[8] or known[2] ~= ARGV[9] then
    return { 'CONFLICT', known[1], known[2] }
  end
  redis.call('HSET', consumer, 'ack_wait', ARGV[7])
  -- With a shorter one, leases may end before it was planned to look.
  redis.call('HDEL', consumer, 'scan_at')
else
  local id, index
  if ARGV[5] == 'new' then
    id, index = last_id(stream), added(stream)
  else
    id = ARGV[6]
    if ARGV[5] == 'after' and pad(id) > pad(last_id(stream)) then
      return { 'AHEAD', last_id(stream) }
    end
    index = index_at(stream, id)
  end
  redis.call('XGROUP', 'CREATE', stream, group_of(name, ARGV[4]), id, 'MKSTREAM')
  redis.call('HSET', consumer, 'identity', ARGV[4], 'ack_wait', ARGV[7], 'filter', ARGV[8], 'keyed', ARGV[9],
    'index', index, 'read', id, 'start', id)
  redis.call('SADD', stream .. ':consumers', name)
  redis.call('DEL', stream .. ':gone:' .. name)
end

local known = redis.call('HMGET', consumer, 'identity', 'start', 'index')
local group = group_of(name, known[1])
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', now - ARGV[10])) do
  if #redis.pcall('XPENDING', stream, group, '-', '+', 1, dead) == 0 then
    redis.pcall('XGROUP', 'DELCONSUMER', stream, group, dead)
    redis.call('ZREM', members, dead)
  end
end
redis.call('ZADD', members, now, member)
return { 'OK', known[1], known[2], known[3] }
