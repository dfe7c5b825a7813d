-- Appends messages to one stream: those that need nothing else.
-- KEYS: stream, routes, count of messages ever added.
-- ARGV: version of the routes by which the publisher routed (empty: none to compare), max_messages (0: none), '=' or
-- '~', max_age in ms (0: not now), max_bytes (0: not now), expiry of the stream in ms (0: none), then the entries.
-- Answers STALE, or {ms, number} of the first one's id; the numbers of the others follow it.
local stream = KEYS[1]
if is_stale(KEYS[2], ARGV[1]) then
  return redis.error_reply('STALE the routes have changed')
end
local count = #ARGV - 6
local number = redis.call('INCRBY', KEYS[3], count) - count + 1
local ms, refused = first_of(stream, clock(), number, ARGV[7])
if refused then
  redis.call('DECRBY', KEYS[3], count)
  return refused
end
-- Numbers become text slowly, so ids are put together from ten that begin alike.
local digits = { [0] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9' }
local tens
for i = 8, #ARGV do
  local n = number + i - 7
  local digit = n % 10
  if digit == 0 or not tens then
    tens = ms .. '-' .. (n < 10 and '' or string.format('%d', (n - digit) / 10))
  end
  redis.call('XADD', stream, tens .. digits[digit], 'm', ARGV[i])
end
trim(stream, KEYS[3], ms, ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
return { ms, number }
