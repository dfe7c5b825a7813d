-- Hands out deliveries that come again, and of a keyed consumer and where it is asked for new ones, too.
-- KEYS: stream. ARGV: consumer, member, identity of the consumer, most deliveries, filter, what else ('0': nothing, '1': the
-- consumer is keyed, '2': new deliveries, too), ack_wait in ms.
-- Answers {'GONE'}, or {'OK', deliveries that come again {id, fields, attempt}, messages missed, ms until something may come
-- again, id up to which the group had read, new entries, last id of the stream's wake stream, {id, number} to start after if
-- the consumer had to be made anew (else 0), how often deliveries were lost}.
local stream, name, member = KEYS[1], ARGV[1], ARGV[2]
local group, max = group_of(name, ARGV[3]), tonumber(ARGV[4])
local consumer, due = stream .. ':consumer:' .. name, stream .. ':due:' .. name
local now, made = clock(), 0
even_when_full(due)

local identity = redis.call('HGET', consumer, 'identity')
if identity ~= ARGV[3] then
  if identity or redis.call('EXISTS', stream .. ':gone:' .. name) == 1 then
    return { 'GONE' }
  end
  -- The server was emptied. What there is now, nobody has read.
  redis.call('HSET', consumer, 'identity', ARGV[3], 'ack_wait', ARGV[7], 'filter', ARGV[5], 'keyed', ARGV[6] == '1' and 1 or 0,
    'index', index_at(stream, '0-0'), 'start', '0-0', 'fence', string.format('%d', now))
  redis.call('SADD', stream .. ':consumers', name)
end
local known = redis.call('HMGET', consumer, 'ack_wait', 'read', 'scan_at', 'scan_from', 'fence', 'start', 'index', 'read_index')
local ack_wait, fence = tonumber(known[1]), tonumber(known[5] or 0)
local position = position_of(stream, group)
if not position then
  -- From before the oldest delivery that was not settled: what was settled after it comes again, nothing is left out.
  position = known[2] or '0-0'
  local index = position == known[6] and known[7] or known[8] or index_at(stream, position)
  redis.call('XGROUP', 'CREATE', stream, group, position, 'MKSTREAM')
  redis.call('DEL', due)
  redis.call('HSET', consumer, 'start', position, 'index', index)
  known[3], made = false, { position, tonumber(index) }
  -- Who was given messages before has lost them.
  fence = redis.call('HINCRBY', consumer, 'fence', 1)
else
  -- Where to go on, should the group be lost.
  local oldest = redis.call('XPENDING', stream, group)[2]
  local floor, index = position, number_of(position)
  if oldest then
    floor, index = before(oldest), number_of(oldest) - 1
  elseif index == 0 then
    index = index_at(stream, position)
  end
  if floor ~= known[2] then
    redis.call('HSET', consumer, 'read', floor, 'read_index', index)
  end
end
redis.call('ZADD', stream .. ':members:' .. name, now, member)

local again, missed, fresh = {}, 0, {}
local function answer(wait)
  return { 'OK', again, missed, wait, position, fresh, last_id(stream .. ':wake'), made, fence }
end
if ARGV[6] == '1' and redis.call('GET', stream .. ':lease:' .. name) ~= member then
  return answer(1000)
end

-- Leases end without a word: so they are looked through, a page at a time, when the first may have ended. What is found
-- is given back, and then handed out like all else that was.
local scan_at = tonumber(known[3] or 0)
if now >= scan_at then
  local page = redis.call('XPENDING', stream, group, known[4] or '-', '+', 1000)
  local soonest, lost = ack_wait, 0
  for _, held in ipairs(page) do
    if held[2] == '~' then
      -- Whatever was given back is due some time. That it is so is made sure of here, should the key have been lost.
      redis.call('ZADD', due, 'NX', now, pad(held[1]))
    elseif held[3] >= ack_wait then
      lost = lost + 1
      if not give_back(stream, group, due, held[1], now + ack_wait - held[3]) then
        missed = missed + 1
      end
    else
      soonest = math.min(soonest, ack_wait - held[3])
    end
  end
  if lost > 0 then
    fence = redis.call('HINCRBY', consumer, 'fence', lost)
  end
  if #page < 1000 then
    -- Of a long list only the last page is known.
    local least = math.min(1000, math.floor(ack_wait / 10))
    scan_at = now + (known[4] and least or math.max(least, soonest))
    redis.call('HDEL', consumer, 'scan_from')
  else
    scan_at = now + 10
    redis.call('HSET', consumer, 'scan_from', page[#page][1])
  end
  redis.call('HSET', consumer, 'scan_at', scan_at)
end

local redelivered = 0
while #again < max do
  local ready = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, max - #again)
  if #ready == 0 then
    break
  end
  for _, text in ipairs(ready) do
    local id = unpad(text)
    local held = redis.call('XPENDING', stream, group, id, id, 1)[1]
    local entry = held and redis.call('XCLAIM', stream, group, member, 0, id)[1]
    redis.call('ZREM', due, text)
    if entry and entry[2] then
      redelivered = redelivered + 1
      again[#again + 1] = { entry[1], entry[2], held[4] + 1 }
    else
      redis.call('XACK', stream, group, id)
      missed = missed + (held and 1 or 0)
    end
  end
end
if redelivered > 0 then
  redis.call('HINCRBY', consumer, 'redelivered', redelivered)
end
if missed > 0 then
  redis.call('HINCRBY', consumer, 'missed', missed)
end

if ARGV[6] ~= '0' and #again < max then
  local read = redis.call('XREADGROUP', 'GROUP', group, member, 'COUNT', max - #again, 'STREAMS', stream, '>')
  fresh = read and read[1][2] or {}
end
local wait = scan_at - now
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if first[2] then
  wait = math.min(wait, math.ceil(first[2] - now))
end
return answer(math.max(0, wait))
