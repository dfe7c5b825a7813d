-- Who is listed at a stream as answering requests.
-- KEYS: stream, set of those with wildcards, set of the literal subjects. ARGV: patterns; of the literal subjects only
-- those that match one are told.
-- Answers for each {pattern or subject, entry, ms until it ends}.
local now, found = clock(), {}
local listed = redis.call('ZRANGEBYSCORE', KEYS[2], now, '+inf', 'WITHSCORES')
for i = 1, #listed, 2 do
  local pattern, entry = string.match(listed[i], '^(%S+) (%S+)$')
  found[#found + 1] = { pattern, entry, math.ceil(listed[i + 1] - now) }
end
for _, subject in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], now, '+inf')) do
  for _, pattern in ipairs(ARGV) do
    if matches(pattern, subject) then
      listed = redis.call('ZRANGEBYSCORE', KEYS[1] .. ':responders:' .. subject, now, '+inf', 'WITHSCORES')
      for i = 1, #listed, 2 do
        found[#found + 1] = { subject, listed[i], math.ceil(listed[i + 1] - now) }
      end
      break
    end
  end
end
return found
