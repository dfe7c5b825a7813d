-- How a consumer stands.
-- KEYS: stream. ARGV: consumer, ms after which a member that was not seen does not count.
-- Answers nothing, or {ack_wait, filter, keyed, start, delivered or '', ack floor or '', pending, lag, redelivered,
-- missed, members, ms for which the oldest delivery is pending or -1}.
local stream, name = KEYS[1], ARGV[1]
local consumer = stream .. ':consumer:' .. name
local now = clock()
if redis.call('EXISTS', consumer) == 0 then
  return false
end
local known = redis.call('HMGET', consumer, 'ack_wait', 'filter', 'keyed', 'start', 'redelivered', 'missed', 'index', 'identity',
  'read')
local group = group_of(name, known[8])
local position = position_of(stream, group) or known[9] or known[4]
local pending = redis.pcall('XPENDING', stream, group)
local count = pending.err and 0 or pending[1]

local function is_ours(entry)
  return known[2] == '' or matches(known[2], string.match(field(entry, 'm'), '^(%S*)'))
end

-- The newest message handed out is where the group stands, or before it, as far as one looks for it.
local delivered = position ~= known[4] and position or ''
if delivered ~= '' and known[2] ~= '' then
  delivered = ''
  for _, entry in ipairs(redis.call('XREVRANGE', stream, position, '-', 'COUNT', 500)) do
    if is_ours(entry) then
      delivered = entry[1]
      break
    end
  end
end

local floor, oldest = delivered, -1
if count > 0 then
  floor = ''
  for _, entry in ipairs(redis.call('XREVRANGE', stream, pending[2], '-', 'COUNT', 2)) do
    if entry[1] ~= pending[2] then
      floor = entry[1]
    end
  end
  for _, held in ipairs(redis.call('XPENDING', stream, group, '-', '+', 100)) do
    oldest = math.max(oldest, held[3])
  end
end

local lag = 0
if known[2] == '' then
  local index, newest = tonumber(known[7]) or 0, added(stream)
  if position ~= known[4] then
    index = number_of(position)
    -- Somebody else than the bus wrote it.
    if index == 0 then
      index = index_at(stream, position)
    end
  end
  lag = math.min(redis.call('XLEN', stream), math.max(0, newest - index - deleted_between(stream, index + 1, newest)))
else
  local start, page = position, nil
  repeat
    page = redis.call('XRANGE', stream, start, '+', 'COUNT', 500)
    for _, entry in ipairs(page) do
      if entry[1] ~= start and is_ours(entry) then
        lag = lag + 1
      end
    end
    start = page[#page] and page[#page][1]
  until #page < 500
end
return {
  known[1], known[2], known[3], known[4], delivered, floor, count, lag, known[5] or 0, known[6] or 0,
  redis.call('ZCOUNT', stream .. ':members:' .. name, now - ARGV[2], '+inf'), oldest,
}
