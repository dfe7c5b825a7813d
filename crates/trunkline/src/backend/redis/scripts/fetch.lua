-- Hands out deliveries: what is due again first, then new ones.
-- KEYS: stream. ARGV: consumer, member, identity of the consumer, most deliveries, filter, keyed (0 or 1), ack_wait in ms.
-- Answers {'GONE'}, or {'OK', deliveries {id, fields, attempt}, messages missed, ms until something is due (-1: nothing
-- is), last id of the stream, last id of its wake stream, 1 if the consumer had to be made anew}. The two last ids are
-- only told where there are no deliveries.
local stream, name, member = KEYS[1], ARGV[1], ARGV[2]
local group, max, filter = 'c:' .. name, tonumber(ARGV[4]), ARGV[5]
local consumer, due = stream .. ':consumer:' .. name, stream .. ':due:' .. name
local now = clock()
local made = 0

local identity = redis.call('HGET', consumer, 'identity')
if identity ~= ARGV[3] then
  if identity or redis.call('EXISTS', stream .. ':gone:' .. name) == 1 then
    return { 'GONE' }
  end
  -- The server was emptied. What there is now, nobody has read.
  redis.call('DEL', due)
  redis.call('HSET', consumer, 'identity', ARGV[3], 'ack_wait', ARGV[7], 'filter', filter, 'keyed', ARGV[6],
    'index', index_at(stream, '0-0'), 'read', '0-0', 'start', '0-0')
  redis.call('SADD', stream .. ':consumers', name)
  made = 1
end
local pending = redis.pcall('XPENDING', stream, group)
if pending.err then
  redis.call('XGROUP', 'CREATE', stream, group, redis.call('HGET', consumer, 'read') or '0-0', 'MKSTREAM')
  redis.call('DEL', due)
  made = 1
end
redis.call('ZADD', stream .. ':members:' .. name, now, member)

local deliveries, missed = {}, 0
local function answer(wait)
  if #deliveries > 0 then
    return { 'OK', deliveries, missed, wait, '', '', made }
  end
  return { 'OK', deliveries, missed, wait, last_id(stream), last_id(stream .. ':wake'), made }
end
if ARGV[6] == '1' and redis.call('GET', stream .. ':lease:' .. name) ~= member then
  return answer(-1)
end

local known = redis.call('HMGET', consumer, 'ack_wait', 'index')
local again = now + tonumber(known[1])
local redelivered = 0
while #deliveries < max do
  local ready = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, max - #deliveries)
  if #ready == 0 then
    break
  end
  for _, text in ipairs(ready) do
    local id = unpad(text)
    local held = redis.call('XPENDING', stream, group, id, id, 1)[1]
    local entry = held and redis.call('XCLAIM', stream, group, member, 0, id)[1]
    if entry and entry[2] then
      redis.call('ZADD', due, again, text)
      redelivered = redelivered + 1
      deliveries[#deliveries + 1] = { entry[1], entry[2], held[4] + 1 }
    else
      redis.call('XACK', stream, group, id)
      redis.call('ZREM', due, text)
      missed = missed + (held and 1 or 0)
    end
  end
end

local index, read, delivered, more = tonumber(known[2]), nil, nil, false
local scanned = 0
while #deliveries < max do
  if scanned >= 1000 then
    more = true
    break
  end
  local answered = redis.call('XREADGROUP', 'GROUP', group, member, 'COUNT', max - #deliveries, 'STREAMS', stream, '>')
  if not answered then
    break
  end
  local taken, skipped = {}, {}
  for _, entry in ipairs(answered[1][2]) do
    local n = field(entry, 'm') ~= '' and number_of(entry[1])
    if n then
      if index and n > index + 1 then
        missed = missed + n - index - 1
      end
      index = n
    end
    read = entry[1]
    if filter == '' or matches(filter, string.match(field(entry, 'm'), '^(%S*)')) then
      delivered = entry[1]
      deliveries[#deliveries + 1] = { entry[1], entry[2], 1 }
      taken[#taken + 1] = again
      taken[#taken + 1] = pad(entry[1])
    else
      skipped[#skipped + 1] = entry[1]
    end
  end
  scanned = scanned + #answered[1][2]
  if #taken > 0 then
    redis.call('ZADD', due, unpack(taken))
  end
  if #skipped > 0 then
    redis.call('XACK', stream, group, unpack(skipped))
  end
end

if read then
  redis.call('HSET', consumer, 'read', read, 'index', index or '')
end
if delivered then
  redis.call('HSET', consumer, 'delivered', delivered)
end
if redelivered > 0 then
  redis.call('HINCRBY', consumer, 'redelivered', redelivered)
end
if missed > 0 then
  redis.call('HINCRBY', consumer, 'missed', missed)
end
if more then
  return answer(0)
end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
return answer(first[2] and math.max(0, math.ceil(first[2] - now)) or -1)
