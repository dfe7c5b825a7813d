-- How a consumer stands.
-- KEYS: stream. ARGV: consumer, ms after which a member that was not seen does not count.
-- Answers nothing, or {ack_wait, filter, keyed, start, delivered or '', ack floor or '', pending, lag, redelivered,
-- missed, members, ms for which the oldest delivery is pending or -1}.
local stream, name = KEYS[1], ARGV[1]
local group, consumer = 'c:' .. name, stream .. ':consumer:' .. name
local now = clock()
if redis.call('EXISTS', consumer) == 0 then
  return false
end
local known = redis.call('HMGET', consumer, 'ack_wait', 'filter', 'keyed', 'start', 'delivered', 'redelivered', 'missed',
  'index', 'read')
local pending = redis.pcall('XPENDING', stream, group)
local count = pending.err and 0 or pending[1]
local floor, oldest = known[5] or '', -1
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
  local length = redis.call('XLEN', stream)
  local index, newest = tonumber(known[8]) or 0, added(stream)
  lag = math.min(length, math.max(0, newest - index - deleted_between(stream, index + 1, newest)))
else
  local start, page = known[9], nil
  repeat
    page = redis.call('XRANGE', stream, start, '+', 'COUNT', 500)
    for _, entry in ipairs(page) do
      if entry[1] ~= start and matches(known[2], string.match(field(entry, 'm'), '^(%S*)')) then
        lag = lag + 1
      end
    end
    start = page[#page] and page[#page][1]
  until #page < 500
end
return {
  known[1], known[2], known[3], known[4], known[5] or '', floor, count, lag, known[6] or 0, known[7] or 0,
  redis.call('ZCOUNT', stream .. ':members:' .. name, now - ARGV[2], '+inf'), oldest,
}
