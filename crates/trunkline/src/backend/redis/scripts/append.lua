-- Appends messages to one stream: those that need nothing else.
-- KEYS: stream, version of the routes known here, count of messages ever added.
-- ARGV: 1 if the publisher's routes were just confirmed, their version (empty: none to compare), max_messages (0: none), '=' or
-- '~', max_age in ms (0: not now), max_bytes (0: not now), expiry of the stream in ms (0: none), then the entries.
-- Answers STALE and the version known here, or {ms, number} of the first one's id; the numbers of the others follow it.
local stream = KEYS[1]
local why = stale(KEYS[2], ARGV[2], ARGV[1])
if why then
  return why
end
local count = #ARGV - 7
local number = redis.call('INCRBY', KEYS[3], count) - count + 1
local ms, refused = first_of(stream, clock(), number, ARGV[8])
if refused then
  redis.call('INCRBY', KEYS[3], -count)
  return refused
end
-- Numbers become text slowly, so ids are put together from ten that begin alike.
local digits = { [0] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9' }
local tens
for i = 9, #ARGV do
  local n = number + i - 8
  local digit = n % 10
  if digit == 0 or not tens then
    tens = ms .. '-' .. (n < 10 and '' or string.format('%d', (n - digit) / 10))
  end
  redis.call('XADD', stream, tens .. digits[digit], 'm', ARGV[i])
end
trim(stream, KEYS[3], ms, ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
return { ms, number }
